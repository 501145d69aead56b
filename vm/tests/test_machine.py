"""Commands in guests."""

import contextlib
import hashlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import broken_module
from syrup_vm import Error, Unavailable, btf, emulator, kernels, machine, record, tools

RUN = Path(__file__).resolve().parent.parent / "run"
NOT_OBTAINABLE = 77


class CommandLine(unittest.TestCase):
    def test_reaches_the_guest_word_by_word(self):
        words = ["a  b", "it's", '"$HOME"', "", "*", "new\nline"]
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "command.sh"
            guest = machine.Machine(kernel=script, env={}, accel="tcg")
            machine._write_command(script, guest, ["printf", "%s|", *words])
            done = subprocess.run(["sh", script], stdout=subprocess.PIPE, text=True, check=True)
        self.assertEqual(done.stdout, "".join(word + "|" for word in words))


# Stands for virtme-ng: what the guest leaves in its folder.
VNG = r"""#!/bin/sh
for last; do :; done
set -- $last
cd "$3"
boot() { echo 7.2 >release; : >started; }
end() {
	echo '13,9,9,-;syrup-vm: the command ended' >>kmsg
	echo 0 >taint
	echo 5 >status
}
"""
STALE = """\
Oops: int3: 0000 [#1] SMP NOPTI
CPU: 0 UID: 0 PID: 208 Comm: dmesg Not tainted 7.2.13+deb14-cloud-amd64 #1 PREEMPT(lazy)
RIP: 0010:sched_tick+0xba/0x230
Code: 31 d2 48 e8 27 d4 03 00 e9 <81> 00 00 00 4c 89
---[ end trace 0000000000000000 ]---
Kernel panic - not syncing: Fatal exception in interrupt
"""


class Endings(unittest.TestCase):
    """How guests end, and what is made of it."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="syrup-vm-test-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        runs = self.folder / "vm"
        for module, name, value in (
            (record, "RUNS", runs),
            (emulator, "LOG", runs / "emulator-faults.jsonl"),
            (emulator, "_EVIDENCE", runs / "emulator-faults"),
            (machine, "_SHUTDOWN_LIMIT_S", 0.3),
            (machine, "_BOOT_LIMIT_S", {"tcg": 0.5}),
        ):
            patched = mock.patch.object(module, name, value)
            patched.start()
            self.addCleanup(patched.stop)

    def run_guest(self, behaviour, **options):
        """(exit status or exception, what was said) of a guest that behaves so."""
        vng = self.folder / "vng"
        vng.write_text(VNG + behaviour)
        vng.chmod(0o755)
        env = {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"}
        guest = machine.Machine(self.folder / "image", env, "tcg", timeout_s=2, silent=True, **options)
        said = io.StringIO()
        with record.new("guest") as self.record, contextlib.redirect_stderr(said):
            try:
                ended = machine.run(guest, ["true"], self.record)
            except Error as error:
                ended = type(error)
                print(error, file=said)
        self.said = said.getvalue()
        self.result = json.loads((self.record.folder / "result.json").read_text())
        return ended

    def test_in_order_pass_the_commands_status_on(self):
        self.assertEqual(self.run_guest("boot; end"), 5, self.said)

    def test_that_hang_fail_whatever_the_command_said(self):
        self.assertEqual(self.run_guest("boot; end; sleep 60"), Error)
        self.assertIn("the guest did not power off after the command, which ended with 5", self.said)
        self.assertEqual(self.result["status"], 5)

    def test_are_judged_by_the_last_words_too(self):
        last = "echo '[ 1.0] BUG: scheduling while atomic: a/12/0x00000002' >console"
        self.assertEqual(self.run_guest(f"boot; end; sleep 0.1; {last}"), machine.KernelComplaint)

    def test_without_a_taint_are_a_complaint(self):
        self.assertEqual(self.run_guest("boot; end; rm taint"), machine.KernelComplaint)

    def test_that_come_too_late_are_124(self):
        self.assertEqual(self.run_guest("boot; sleep 60"), machine.TIMED_OUT)
        self.assertIn("the command did not end within 2 s", self.said)

    def test_before_the_command_are_tried_once_more_and_leave_nothing_to_it(self):
        # The command starts at the very moment that the first guest is given up.
        first = "if [ ! -e first-boot ]; then echo 6 >kmsg; trap 'boot; end; exit' TERM; sleep 60 & wait; fi"
        self.assertEqual(self.run_guest(f"{first}\nsleep 0.2; [ ! -e status ] && boot && end"), 5)
        self.assertIn("did not boot within", self.said)
        self.assertIn("trying once more", self.said)
        self.assertEqual(self.result["boots"], 2)
        self.assertTrue((self.record.folder / "first-boot/started").exists())
        self.assertEqual(self.run_guest("exit 3"), machine.BootFailure)

    def death(self, kmsg="", **options):
        (self.folder / "console").write_text(STALE)
        return self.run_guest(
            f"boot; echo '{kmsg}' >kmsg; cat {self.folder}/console >console; exit 1", **options
        )

    def test_by_what_emulation_gets_wrong_are_excused_so_often(self):
        for _ in range(emulator.AT_MOST):
            self.assertEqual(self.death(), machine.EmulatorFault, self.said)
            self.assertEqual(self.death(counted=False), machine.EmulatorFault, self.said)
        self.assertEqual(self.death(), Error)
        self.assertIn("more than 3 are not excused", self.said)
        self.assertEqual(self.death(counted=False), machine.EmulatorFault, self.said)

    def test_by_it_excuse_nothing_else_that_the_kernel_said(self):
        for text in ('sched_ext: BPF scheduler "x" disabled (runnable task stall)',
                     "INFO: task kworker/0:1:9 blocked for more than 120 seconds."):  # fmt: skip
            self.assertEqual(self.death(f"4,1,1,-;{text}"), Error, text)
            self.assertIn(text, self.said)
        self.assertFalse(emulator.LOG.exists())


class Answers(unittest.TestCase):
    def test_what_cannot_be_downloaded_is_77_without_a_guest_too(self):
        main = runpy.run_path(str(RUN))["main"]
        for error, status in (Unavailable("no mirror"), NOT_OBTAINABLE), (Error("no QEMU"), 125):
            with (
                mock.patch.object(tools, "prepare", side_effect=error),
                mock.patch.object(sys, "argv", ["vm/run", "--print-accel"]),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                self.assertEqual(main(), status)


class Guest:
    """A guest that ran, with what is kept of it."""

    def __init__(self, name, command, *options):
        done = subprocess.run(
            [RUN, "--name", f"test-{name}", *options, "--", "sh", "-c", command],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        self.status, self.out, self.err = done.returncode, done.stdout, done.stderr
        folder = record.RUNS / f"test-{name}"
        self.result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        self.dmesg = (folder / "dmesg").read_text(encoding="utf-8")


@unittest.skipUnless(os.environ.get("SYRUP_VM_TEST_BOOT"), "boots machines: --boot")
class Run(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # Downloads what is missing, which vm/run tells of on stderr.
        done = subprocess.run([RUN, "--print-accel"], stdout=subprocess.DEVNULL)
        cls.offline = done.returncode == NOT_OBTAINABLE and os.environ.get("SYRUP_ALLOW_OFFLINE") == "1"
        if cls.offline:
            return
        done.check_returncode()
        cls.kernel = kernels.find("newest")
        record.RUNS.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=record.RUNS)
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)

    def setUp(self):
        # Not the class: each is counted.
        if self.offline:
            self.skipTest("its kernel cannot be downloaded (SYRUP_ALLOW_OFFLINE is set)")

    def insmod(self, what):
        """The command that makes the guest's kernel do `what`."""
        module = broken_module.make(what, self.kernel.path.parent, self.folder)
        return f"/sbin/insmod {module} 2>/dev/null"

    def test_a_good_guest_passes_streams_and_exit_status_through(self):
        modules = self.insmod("warn")
        guest = Guest("good", f"""
            seq 100000; echo no >&2
            sha256sum </sys/kernel/btf/vmlinux >target/vm/test-good/btf
            echo 'WARNING: by a program' >/dev/kmsg
            echo 'syrup-test: expect underflow; use-after-free' >/dev/kmsg
            {modules}
            exit 124""")  # fmt: skip
        self.assertEqual(guest.out, "".join(f"{i}\n" for i in range(1, 100001)))
        begins = f"vm: Linux {self.kernel.release} (newest), {guest.result['accel']}, 4 CPUs"
        self.assertTrue(guest.err.startswith(begins), guest.err)
        self.assertEqual(guest.err.split("\n")[1:], ["no", ""])
        # The number of a command that took too long, but the command's own.
        self.assertEqual(
            (guest.status, guest.result["status"], guest.result["verdict"]), (124, 124, "ok")
        )
        self.assertEqual(guest.result["release"], self.kernel.release)
        [complaint] = guest.result["complaints"]
        self.assertEqual((complaint["kind"], complaint["announced"]), ("warning", True))
        self.assertTrue(guest.result["taint"] >> 9 & 1)
        self.assertIn("WARNING: by a program", guest.dmesg)
        self.assertIn("Linux version", guest.dmesg)
        # What decides about kernels is what they really have.
        found = btf._section(btf._vmlinux(self.kernel.path), b".BTF")
        [seen] = (record.RUNS / "test-good/btf").read_text().split()[:1]
        self.assertEqual(hashlib.sha256(found).hexdigest(), seen)

    def test_a_warning_fails_the_guest_whatever_its_command_says(self):
        setting = "/sys/kernel/mm/transparent_hugepage/enabled"
        guest = Guest("warning", f"""
            cat {setting}; echo always >{setting}; cat {setting}
            # The excuse was for another test.
            echo 'syrup-test: expect underflow; use-after-free' >/dev/kmsg
            echo 'syrup-test: begin another' >/dev/kmsg
            {self.insmod("warn")}
            exit 0""", "--icount")  # fmt: skip
        self.assertEqual((guest.status, guest.result["status"]), (123, 0))
        self.assertEqual(guest.result["verdict"], "complaint")
        self.assertIn("refcount_t: underflow; use-after-free", guest.err)
        self.assertIn("WARNING: ", guest.err)
        self.assertIn("target/vm/test-warning/dmesg", guest.err)
        # Where time is counted there are no huge pages, unless the command wants them.
        self.assertEqual(guest.out, "always madvise [never]\n[always] madvise never\n")

    def test_an_oops_ends_the_guest_with_its_last_words(self):
        guest = Guest("oops", f"{self.insmod('oops')}; echo survived")
        self.assertEqual((guest.status, guest.out), (125, ""))
        self.assertIn("the guest died", guest.err)
        self.assertIn("Oops: invalid opcode", guest.err)
        self.assertIn("oops", [complaint["kind"] for complaint in guest.result["complaints"]])
        self.assertEqual(guest.result["verdict"], "failed")

    def test_a_cpu_that_is_stuck_ends_the_guest(self):
        # Sooner than after a minute.
        sooner = "echo 3 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout"
        # A stall is one of a grace period, for which processes that end ask.
        busy = "(while :; do /bin/true; done) &"
        guest = Guest("stall", f"{sooner}; {busy} {self.insmod('stall')}; echo survived", "--timeout", "180")
        self.assertEqual((guest.status, guest.out), (125, ""))
        # The report, or, where the guest was too slow to hand it on, the panic it ends in.
        stall = "rcu: INFO: .* stall|Kernel panic - not syncing: RCU Stall"
        self.assertRegex(guest.err, stall)
        self.assertTrue(
            any(re.search(stall, complaint["line"]) for complaint in guest.result["complaints"])
        )

    def test_a_command_that_takes_too_long_is_stopped(self):
        # On a kernel without modules, so without layers over the host's files.
        guest = Guest("slow", "touch /tmp/x /run/x && uname -r; sleep 1000", "--timeout", "15",
                      "--kernel", "oldest")  # fmt: skip
        self.assertEqual((guest.status, guest.out), (machine.TIMED_OUT, kernels.find("oldest").release + "\n"))
        self.assertEqual(guest.result["verdict"], "timeout")
        self.assertIn("(oldest), ", guest.err)
