"""Whether guests run with KVM on this host."""

import grp
import os
from pathlib import Path

from . import Error, cache, machine
from .kernels import Kernel


def choose(kernel: Kernel, env: dict[str, str], progress=lambda text: None) -> tuple[str, str]:
    """`kvm` where a guest really boots with it, else `tcg` and why.

    That /dev/kvm opens proves nothing: on some hosts that are guests
    themselves, a stock kernel stops at its first unusual instruction. So it is
    tried, once per boot of the host; `SYRUP_VM_ACCEL` overrules."""
    if wish := os.environ.get("SYRUP_VM_ACCEL"):
        if wish not in ("kvm", "tcg"):
            raise Error(f"SYRUP_VM_ACCEL={wish}: must be kvm or tcg")
        return wish, "SYRUP_VM_ACCEL says so"
    if obstacle := _obstacle():
        return "tcg", obstacle
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    answer = cache.folder("accel")
    failed = f"a guest did not boot with KVM when it was tried; remove {answer} to have it tried again"
    with cache.exclusive("accel"):
        if answer.exists():
            known_boot, accel = answer.read_text(encoding="utf-8").split()
            if known_boot == boot:
                return accel, "" if accel == "kvm" else failed
        progress("trying whether a guest boots with KVM")
        works = machine.boots(kernel.path, env, "kvm")
        accel = "kvm" if works else "tcg"
        progress("it does" if works else "it does not: software emulation it is")
        answer.write_text(f"{boot} {accel}\n", encoding="utf-8")
        return accel, "" if works else failed


def _obstacle(device: str = "/dev/kvm", cpuinfo: str = "/proc/cpuinfo") -> str:
    """Why KVM need not be tried, and what to do about it."""
    flags = set(Path(cpuinfo).read_text(encoding="utf-8").split())
    if not flags & {"vmx", "svm"}:
        return "this processor offers no virtualisation (to this system)"
    if not os.path.exists(device):
        return f"no {device}: load kvm_intel or kvm_amd"
    if not os.access(device, os.R_OK | os.W_OK):
        group = _group(device)
        return f"{device} is not yours to open: `sudo usermod -aG {group} $USER`, then log in again"
    return ""


def _group(path: str) -> str:
    try:
        return grp.getgrgid(os.stat(path).st_gid).gr_name
    except KeyError:
        return "kvm"
