"""Whether guests run with KVM on this host."""

import os
from pathlib import Path

from . import Error, cache, machine

def choose(kernel: Path, env: dict[str, str], progress=lambda text: None) -> str:
    """`kvm` where a guest really boots with it, else `tcg`.

    That /dev/kvm opens proves nothing: on some hosts that are guests
    themselves, a stock kernel stops at its first unusual instruction. So it is
    tried, once per boot of the host; `SYRUP_VM_ACCEL` overrules."""
    if wish := os.environ.get("SYRUP_VM_ACCEL"):
        if wish not in ("kvm", "tcg"):
            raise Error(f"SYRUP_VM_ACCEL={wish}: must be kvm or tcg")
        return wish
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    if not flags & {"vmx", "svm"} or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    answer = cache.folder("accel")
    with cache.exclusive("accel"):
        if answer.exists():
            known_boot, accel = answer.read_text(encoding="utf-8").split()
            if known_boot == boot:
                return accel
        progress("trying whether a guest boots with KVM")
        works = machine.boots(kernel, env, "kvm")
        accel = "kvm" if works else "tcg"
        progress("it does" if works else "it does not: software emulation it is")
        answer.write_text(f"{boot} {accel}\n", encoding="utf-8")
        return accel
