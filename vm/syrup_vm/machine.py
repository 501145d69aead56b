"""One virtual machine: boot, run one command, stop.

The guest sees the host's file system (writable layers in its memory) and the
repository at the same path, writable for real. Progress is read from files
that vm/guest.sh writes below target/vm, not from the output, which belongs to
the command alone."""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from . import Error

REPOSITORY = Path(__file__).resolve().parent.parent.parent

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

# Several times what a boot takes: 3 s with KVM, 15-30 s without. Of some 45
# boots without KVM one hung for good.
_BOOT_LIMIT_S = {"kvm": 60, "tcg": 180, "icount": 240}
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


class BootFailure(Error):
    """The guest never started the command."""


class EmulatorFault(Error):
    """The guest's kernel tripped over its own code patching, as only emulated
    ones were seen to."""


def run(machine: Machine, command: list[str]) -> int:
    """The command's exit status, or 124 if it ran out of time. A boot that
    fails is tried once more; a command never is."""
    try:
        return _attempt(machine, command, _BOOT_LIMIT_S[machine.accel])
    except BootFailure as failure:
        _say(f"{failure}; trying once more, with the guest's console shown")
        return _attempt(replace(machine, console=True), command, _BOOT_LIMIT_S[machine.accel])


def boots(kernel: Path, env: dict[str, str], accel: str) -> bool:
    machine = Machine(kernel, env, accel, cpus=1, memory="512M", timeout_s=10, silent=True)
    try:
        return _attempt(machine, ["true"], _KVM_TRIAL_LIMIT_S) == 0
    except Error:
        return False


def _attempt(machine: Machine, command: list[str], boot_limit_s: float) -> int:
    runs = REPOSITORY / "target" / "vm"
    runs.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="run.", dir=runs) as folder,
        # Sockets: their paths must be short, so not below the repository.
        tempfile.TemporaryDirectory(prefix="syrup-vm.") as sockets,
    ):
        folder = Path(folder)
        _write_command(folder / "command.sh", machine, command)
        env = dict(machine.env, TMPDIR=sockets)
        lifetime_s = boot_limit_s + machine.timeout_s + _SHUTDOWN_LIMIT_S
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
            return _watch(process, folder, machine, boot_limit_s)
        finally:
            _kill(process, killed)
            for copier in copiers:
                copier.join()


def _watch(process, folder: Path, machine: Machine, boot_limit_s: float) -> int:
    started, status = folder / "started", folder / "status"

    if not _wait(process, started, boot_limit_s):
        raise BootFailure(
            f"the guest did not boot within {boot_limit_s} s"
            if process.poll() is None
            else f"the guest did not boot (virtme-ng ended with {process.returncode})"
        )
    if not _wait(process, status, machine.timeout_s):
        if process.poll() is None:
            _say(f"the command did not end within {machine.timeout_s:g} s")
            _show_kernel_messages(folder)
            return TIMED_OUT
        _show_kernel_messages(folder)
        if machine.accel == "tcg" and ran_stale_code(_read(folder / "console")):
            raise EmulatorFault(
                "the guest died of a breakpoint that its memory does not hold (any more): its "
                "kernel was patching its own code, which emulation gets wrong now and then"
            )
        raise Error(f"the guest died while the command ran (virtme-ng ended with {process.poll()})")
    try:
        # The last output is on its way until QEMU is gone.
        process.wait(_SHUTDOWN_LIMIT_S)
    except subprocess.TimeoutExpired:
        _say("the guest did not power off; stopped it")
    return int(status.read_text(encoding="ascii"))


def _wait(process, path: Path, limit_s: float) -> bool:
    """Until `path` exists (True), the process ends or time is up."""
    deadline = time.monotonic() + limit_s
    while not path.exists():
        if process.poll() is not None:
            return path.exists()
        if time.monotonic() > deadline:
            return False
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            pass
    return True


def _vng(machine: Machine, folder: Path) -> list[str]:
    for path in (REPOSITORY, machine.kernel):
        if not re.fullmatch(r"[\w+./-]+", str(path)):
            raise Error(f"virtme-ng cannot cope with the path {path}: no blanks, please")
    # virtme-ng's own console is all or nothing. A second one is silent but for a
    # panic, whose last words no process of the guest could pass on.
    options = (
        f"{QEMU_OPTIONS[machine.accel]} -chardev file,id=panic,path={folder}/console "
        "-device virtio-serial-pci -device virtconsole,chardev=panic"
    )
    guest = shlex.join(["sh", str(REPOSITORY / "vm/guest.sh"), str(folder)])
    return [
        "vng",
        f"--run={machine.kernel}",
        "--user=root",
        f"--cpus={machine.cpus}",
        f"--memory={machine.memory}",
        f"--rwdir={REPOSITORY}",
        # One machine type with and without KVM.
        "--disable-microvm",
        *([] if machine.accel == "kvm" else ["--disable-kvm"]),
        *(["--verbose"] if machine.console else []),
        f"--qemu-opts={options}",
        "--append=console=hvc0",
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


def ran_stale_code(console: str) -> bool:
    """Did the guest's kernel panic over a breakpoint that is not there?

    The kernel patches a jump (a static key, as sched_ext's are) by way of a
    breakpoint, and no CPU may meet that once the jump is there. Under QEMU's
    translator with a thread per CPU one did: it trapped where memory held no
    0xcc. That is the byte before <> in the first Code line, which marks the
    address after the breakpoint. Most likely a translation of the breakpoint
    outlived it; nothing a program in the guest does could bring it about."""
    _, oops, after = console.partition("Oops: int3:")
    code = re.search(r"RIP: 0010:.*?\n.*?Code: (?:[0-9a-f]{2} )*?([0-9a-f]{2}) <", after)
    return bool(oops) and code is not None and code[1] != "cc"


def _show_kernel_messages(folder: Path) -> None:
    for name, what, last in (("dmesg", "last kernel messages", 20), ("console", "panic", 100)):
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
