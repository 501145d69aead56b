"""One virtual machine: boot, run one command, stop.

The guest sees the host's file system (writable layers in its memory) and the
repository at the same path, writable for real. Progress is read from files
that vm/guest.sh writes into the guest's record below target/vm, not from the
output, which belongs to the command alone."""

import enum
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from . import Error, emulator, judge, record
from .record import REPOSITORY

TIMED_OUT = 124

# How the guest's instructions are executed: by the processor; by QEMU's
# translator, one thread per guest CPU; or by the translator in one thread that
# counts them and derives guest time from the count. The last is slower for
# parallel work, but a busy host no longer shows in guest time.
QEMU_OPTIONS = {
    "kvm": "",  # virtme-ng itself asks for it
    "tcg": "-accel tcg,thread=multi",
    "icount": "-accel tcg,thread=single -icount shift=3,sleep=off",
}

# An oops ends the guest, before it spoils what comes after. So does a CPU that
# is stuck: the command might wait for it until its own time is up. Warnings and
# hung tasks are left to the verdict at the end.
#
# In an emulated guest that is not counted, time goes on while the host runs
# somebody else, so "stuck" (the kernel's own: 20 s without the watchdog's
# thread, 21 s without a grace period of RCU) may be a busy host. A lockup lasts
# for ever: there it is waited for three times as long. For the same reason the
# kernel is not to compare its clocks there: it took a vCPU that had waited for a
# skew of the TSC, which is the host's clock, and the change to another clock
# stopped the guest, all CPUs spinning, without a word.
_KERNEL_OPTIONS = (
    "oops=panic", "softlockup_panic=1", "sysctl.kernel.panic_on_rcu_stall=1",
    # The log is judged: it must not overflow, and announcements in it not be dropped.
    "log_buf_len=2M", "printk.devkmsg=on",
    # Who panics says all of it again on the console: what led there was said
    # more softly, and no process lives to record it.
    "panic_print=0x20",
)  # fmt: skip
_PATIENT = (
    "watchdog_thresh=30", "rcupdate.rcu_cpu_stall_timeout=63", "tsc=nowatchdog",
)  # fmt: skip

# Several times what a boot takes on a quiet host: 3 s with KVM, 15-30 s
# without. Of some 45 boots without KVM one hung for good.
_BOOT_LIMIT_S = {"kvm": 60, "tcg": 150, "icount": 200}
# On a crowded host, up to this many times that.
_MOST_CROWDED = 6
_KVM_TRIAL_LIMIT_S = 30
# From the end of the command to the end of QEMU.
_SHUTDOWN_LIMIT_S = 30

# Variables that mean something to a program under test. The rest describes
# the host.
_PASSED = ("PATH", "HOME", "LANG", "CARGO_MANIFEST_DIR", "CARGO_TARGET_DIR")
_PASSED_PREFIXES = ("SYRUP_", "RUST_", "NEXTEST")


@dataclass(frozen=True)
class Machine:
    kernel: Path
    env: dict[str, str]
    accel: str  # a key of QEMU_OPTIONS
    cpus: int = 4
    memory: str = "2G"
    timeout_s: float = 900
    console: bool = False
    silent: bool = False
    # Whether a fault of emulation counts (emulator.py).
    counted: bool = True


class BootFailure(Error):
    """The guest never started the command."""


class EmulatorFault(Error):
    """The guest's kernel tripped over its own code patching, as only emulated
    ones were seen to (emulator.py)."""


class KernelComplaint(Error):
    """The guest's kernel said, or its taint says, that something is wrong."""


def run(machine: Machine, command: list[str], guest: record.Record) -> int:
    """The command's exit status, or 124 if it ran out of time. A boot that
    fails is tried once more; a command never is."""
    try:
        return _attempt(machine, command, guest, _BOOT_LIMIT_S[machine.accel])
    except BootFailure as failure:
        _show_kernel_messages(guest.folder)
        # tests/run looks for these words.
        _say(f"{failure}; trying once more, with the guest's console shown")
        guest.set_aside("first-boot")
        guest.note(boots=2)
        return _attempt(replace(machine, console=True), command, guest, _BOOT_LIMIT_S[machine.accel])


def boots(kernel: Path, env: dict[str, str], accel: str) -> bool:
    machine = Machine(kernel, env, accel, cpus=1, memory="512M", timeout_s=10, silent=True)
    with record.new(None) as guest:
        try:
            return _attempt(machine, ["true"], guest, _KVM_TRIAL_LIMIT_S) == 0
        except Error:
            return False


def _attempt(machine: Machine, command: list[str], guest: record.Record, boot_limit_s: float) -> int:
    folder = guest.folder
    # Sockets: their paths must be short, so not below the repository.
    with tempfile.TemporaryDirectory(prefix="syrup-vm.") as sockets:
        _write_command(folder / "command.sh", machine, command)
        env = dict(machine.env, TMPDIR=sockets)
        lifetime_s = _MOST_CROWDED * (boot_limit_s + _SHUTDOWN_LIMIT_S) + machine.timeout_s
        process = subprocess.Popen(
            _bounded(_vng(machine, folder), lifetime_s),
            stdin=subprocess.DEVNULL,
            # Never our own: QEMU truncates a file that it is given as output.
            stdout=subprocess.DEVNULL if machine.silent else subprocess.PIPE,
            stderr=subprocess.DEVNULL if machine.silent else subprocess.PIPE,
            start_new_session=True,
            env=env,
            cwd=REPOSITORY,
        )
        killed = threading.Event()
        copiers = []
        if not machine.silent:
            copiers = [_copy(process.stdout, 1, killed), _copy(process.stderr, 2, killed)]
        try:
            ending = _watch(process, guest, machine, boot_limit_s)
        finally:
            _kill(process, killed)
            for copier in copiers:
                copier.join()
            _write_dmesg(folder)
    return _conclude(ending, process.returncode, guest, machine)


class _Ending(enum.Enum):
    """How the guest ended, or did not."""

    ENDED = enum.auto()
    HUNG = enum.auto()  # after the command
    LATE = enum.auto()
    DIED = enum.auto()


def _watch(process, guest: record.Record, machine: Machine, boot_limit_s: float) -> _Ending:
    started, status = guest.folder / "started", guest.folder / "status"

    begun = time.monotonic()
    if not _wait(process, started.exists, boot_limit_s, crowded=True):
        raise BootFailure(
            f"the guest did not boot within {time.monotonic() - begun:.0f} s"
            if process.poll() is None
            else f"the guest did not boot (virtme-ng ended with {process.returncode})"
        )
    release = _read(guest.folder / "release").strip()
    guest.note(boot_s=round(time.monotonic() - begun, 1), release=release)
    if not _wait(process, status.exists, machine.timeout_s):
        return _Ending.LATE if process.poll() is None else _Ending.DIED
    # The last output is on its way until QEMU is gone.
    _wait(process, lambda: False, _SHUTDOWN_LIMIT_S, crowded=True)
    return _Ending.HUNG if process.poll() is None else _Ending.ENDED


def _conclude(ending: _Ending, vng: int, guest: record.Record, machine: Machine) -> int:
    """What it all means, once the guest is gone and its log complete."""
    folder = guest.folder
    ended = ending in (_Ending.ENDED, _Ending.HUNG)
    if ended:
        ran = int(_read(folder / "status"))
        guest.note(status=ran)
    verdict = _judge(guest, ended)
    if ending is _Ending.DIED:
        _died(verdict, vng, guest, machine)
    if ending is _Ending.HUNG:
        _show_kernel_messages(folder)
        raise Error(f"the guest did not power off after the command, which ended with {ran}")
    if ending is _Ending.LATE:
        _say(f"the command did not end within {machine.timeout_s:g} s")
    if not verdict.good():
        raise KernelComplaint(
            f"its whole log is {guest.path()}/dmesg. This fails the run, whatever the command says. "
            "A test that means to bring it about announces it first (vm/README.md)"
        )
    if ending is _Ending.LATE:
        _show_kernel_messages(folder)
        return TIMED_OUT
    return ran


def _died(verdict: judge.Verdict, vng: int, guest: record.Record, machine: Machine):
    """The guest is gone while the command ran: raises what that means."""
    facts = {"release": _read(guest.folder / "release").strip(), "accel": machine.accel}
    place = emulator.stale_code(_read(guest.folder / "console")) if machine.accel == "tcg" else None
    # Whatever else the kernel complained of must not go with the guest.
    if place and all(complaint.kind in ("oops", "panic") for complaint in verdict.unannounced()):
        nr, evidence = emulator.keep(guest, place, facts, machine.counted)
        text = (
            f"the guest died of a breakpoint at {place} that its memory does not hold (any more): "
            "its kernel was patching its own code, which emulation gets wrong now and then. "
            f"Kept in {os.path.relpath(evidence, REPOSITORY)}, {nr} were counted within a day"
        )
        if nr <= emulator.AT_MOST or not machine.counted:
            raise EmulatorFault(text)
        raise Error(f"{text}: more than {emulator.AT_MOST} are not excused. Look at them.")
    _show_kernel_messages(guest.folder)
    raise Error(f"the guest died while the command ran (virtme-ng ended with {vng})")


def _judge(guest: record.Record, ended: bool) -> judge.Verdict:
    """Shows what the kernel complained of, and notes it."""
    said = _read(guest.folder / "taint").strip()
    taint = int(said) if ended and said else None
    messages = judge.parse(_read(guest.folder / "kmsg"))
    verdict = judge.judge(messages, taint, _read(guest.folder / "console"), ended)
    guest.note(
        taint=taint,
        complaints=[
            {"kind": c.kind, "announced": c.announced, "line": c.head(), "during": c.during}
            for c in verdict.complaints
        ],
        faults=verdict.faults,
    )
    if not verdict.good():
        _say("the guest's kernel complained:")
    for line in verdict.lines():
        print(f"  {line}", file=sys.stderr)
    return verdict


def _wait(process, done: Callable[[], bool], limit_s: float, crowded: bool = False) -> bool:
    """Until `done` (True), the process ends or time is up. With `crowded` a host
    with three runnable threads per CPU is given three times as long."""
    now = time.monotonic()
    while not done():
        if process.poll() is not None:
            return done()
        if limit_s < 0:
            return False
        last, now = now, time.monotonic()
        limit_s -= (now - last) / (_crowd() if crowded else 1)
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            pass
    return True


def _crowd() -> float:
    load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    return min(max(load, 1), _MOST_CROWDED)


def _vng(machine: Machine, folder: Path) -> list[str]:
    for path in (REPOSITORY, machine.kernel):
        if not re.fullmatch(r"[\w+./-]+", str(path)):
            raise Error(f"virtme-ng cannot cope with the path {path}: no blanks, please")
    # virtme-ng's own console is all or nothing. A second one is silent but for a
    # panic, whose last words no process of the guest could pass on; and a third, the
    # second serial port, for one that comes before there are drivers.
    options = (
        f"{QEMU_OPTIONS[machine.accel]} -chardev file,id=panic,path={folder}/console "
        "-device virtio-serial-pci -device virtconsole,chardev=panic "
        f"-chardev file,id=early,path={folder}/early -serial chardev:early"
    )
    guest = shlex.join(["sh", str(REPOSITORY / "vm/guest.sh"), str(folder), machine.accel])
    appended = ["earlycon=uart8250,io,0x2f8", "console=hvc0", *_KERNEL_OPTIONS]
    appended += _PATIENT if machine.accel == "tcg" else ()
    return [
        "vng",
        f"--run={machine.kernel}",
        "--user=root",
        f"--cpus={machine.cpus}",
        f"--memory={machine.memory}",
        f"--rwdir={REPOSITORY}",
        f"--rodir=usr/lib/udev/rules.d={REPOSITORY}/vm/udev",
        # One machine type with and without KVM.
        "--disable-microvm",
        *([] if machine.accel == "kvm" else ["--disable-kvm"]),
        *(["--verbose"] if machine.console else []),
        f"--qemu-opts={options}",
        *(f"--append={option}" for option in appended),
        f"--exec={guest}",
    ]


def _bounded(command: list[str], lifetime_s: float) -> list[str]:
    """virtme-ng, virtiofsd and QEMU form one process group under timeout(1),
    which ends it if this process is killed (pdeathsig) or forgets to."""
    return [
        "setpriv", "--pdeathsig", "TERM",
        "timeout", "--kill-after=5", f"{lifetime_s:g}",
        *command,
    ]  # fmt: skip


def _kill(process, killed: threading.Event) -> None:
    """Ends QEMU and virtiofsd, whatever virtme-ng left of them. Gently first:
    virtme-ng has temporary files to remove."""
    if process.poll() is None:
        # What QEMU has to say about being killed is news to nobody.
        killed.set()
    for number, limit_s in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
            process.wait(limit_s)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


def _write_command(path: Path, machine: Machine, command: list[str]) -> None:
    lines = [
        f"export {name}={shlex.quote(value)}"
        for name, value in os.environ.items()
        if name in _PASSED or name.startswith(_PASSED_PREFIXES)
    ]
    lines.append(f"export SYRUP_VM={machine.accel}")
    here = Path.cwd()
    folder = here if here.is_relative_to(REPOSITORY) else REPOSITORY
    lines.append(f"cd {shlex.quote(str(folder))}")
    lines.append("exec " + shlex.join(command))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _copy(source, target: int, killed: threading.Event) -> threading.Thread:
    def copy():
        while data := os.read(source.fileno(), 65536):
            try:
                while data and not killed.is_set():
                    data = data[os.write(target, data) :]
            except BrokenPipeError:
                # Nobody listens any more (`| head`): keep the guest from
                # blocking, its exit status still counts.
                pass

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def _write_dmesg(folder: Path) -> None:
    """Also of guests that died: of those as far as it was recorded."""
    text = judge.dmesg(judge.parse(_read(folder / "kmsg")))
    (folder / "dmesg").write_text(text, encoding="utf-8")


def _show_kernel_messages(folder: Path) -> None:
    for name, what, last in (
        ("dmesg", "last kernel messages", 20),
        ("early", "first console", 60),
        ("console", "console", 100),
    ):
        lines = _read(folder / name).splitlines()
        if lines:
            _say(f"the guest's {what}:")
        for line in lines[-last:]:
            print(f"  {line}", file=sys.stderr)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr, flush=True)
