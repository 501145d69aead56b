"""Commands in guests."""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

from syrup_vm import machine, record

RUN = Path(__file__).resolve().parent.parent / "run"


class CommandLine(unittest.TestCase):
    def test_reaches_the_guest_word_by_word(self):
        words = ["a  b", "it's", '"$HOME"', "", "*", "new\nline"]
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "command.sh"
            guest = machine.Machine(kernel=script, env={}, accel="tcg")
            machine._write_command(script, guest, ["printf", "%s|", *words])
            done = subprocess.run(["sh", script], stdout=subprocess.PIPE, text=True, check=True)
        self.assertEqual(done.stdout, "".join(word + "|" for word in words))


@unittest.skipUnless(os.environ.get("SYRUP_VM_TEST_BOOT"), "boots machines: --boot")
class Run(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # Downloads what is missing, which vm/run tells of on stderr.
        subprocess.run([RUN, "--print-accel"], stdout=subprocess.DEVNULL, check=True)

    def run_in_guest(self, *arguments):
        return subprocess.run([RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def test_passes_streams_and_exit_status_through(self):
        done = self.run_in_guest("--", "sh", "-c", "seq 100000; echo no >&2; exit 255")
        self.assertEqual(done.returncode, 255)
        self.assertEqual(done.stdout, b"".join(b"%d\n" % i for i in range(1, 100001)))
        self.assertEqual(done.stderr, b"no\n")

    def test_stops_a_command_that_takes_too_long(self):
        done = self.run_in_guest("--timeout", "2", "--", "sh", "-c", "echo begun; sleep 1000")
        self.assertEqual(done.returncode, machine.TIMED_OUT)
        self.assertEqual(done.stdout, b"begun\n")

    def test_reports_a_guest_that_dies_with_its_last_words(self):
        done = self.run_in_guest("--", "sh", "-c", "echo c >/proc/sysrq-trigger")
        self.assertEqual(done.returncode, 125)
        self.assertIn(b"the guest died", done.stderr)
        self.assertIn(b"Kernel panic - not syncing: sysrq triggered crash", done.stderr)
