"""The one way in which QEMU's translator breaks a guest's kernel.

Excused narrowly, since a crash of the project's own making must not pass for
it: only what was seen, kept as evidence, and only so often."""

import json
import re
import shutil
import tempfile
import time
from pathlib import Path

from . import cache, record

# How the instructions begin that x86's kernel patches in itself (jump labels, static
# calls, ftrace: arch/x86/kernel/{jump_label,static_call,ftrace}.c): a jump, a call, a
# return, and the nops of two and of five bytes.
_PATCHED = re.compile(r"eb|e9|e8|c3|66 90|0f 1f 44 00 00")

# Seen once in some thirty runs of the thread hook's tests.
AT_MOST = 3
WITHIN_S = 24 * 3600

# One line per fault, appended for as long as target/ lives.
LOG = record.RUNS / "emulator-faults.jsonl"
_EVIDENCE = record.RUNS / "emulator-faults"


def stale_code(console: str) -> str | None:
    """The place, `function+offset`, where the guest's kernel panicked over a
    breakpoint that is not there; None if it died of anything else.

    The kernel patches a jump (a static key, as sched_ext's are) by way of a
    breakpoint, and no CPU may meet that once the jump is there. Under QEMU's
    translator with a thread per CPU one did: it trapped where memory held no
    0xcc. That is the byte before <> in the first Code line, which marks the
    address after the breakpoint. Most likely a translation of the breakpoint
    outlived it; nothing a program in the guest does could bring it about, but for
    `int $3` in two bytes, and BPF has none. The place has to hold what the kernel
    patches, and belong to the kernel itself: not to a module, not to a BPF program.
    (A list of the functions in which it was seen grew with every other run: any
    static key may be the one.)

    Only the first Oops of an untainted kernel counts: after another one
    anything may follow."""
    first = re.search(r"(Oops|BUG|WARNING|kernel BUG|general protection fault)\b.*", console)
    if not first or not re.match(r"Oops: int3: .*\[#1\]", first[0]):
        return None
    # "Not tainted", or only with modules that are not the kernel's own.
    taint = re.search(r"^.*\bCPU: \d+ .*?(Not tainted|Tainted: ([A-Z ]+)) +\d", console, re.M)
    if not taint or set(taint[2] or "") - set("GPOE "):
        return None
    # The first that is told, whatever that is: later ones are other CPUs', or user space's.
    said = console[first.start() :]
    trap = re.search(r"RIP: (.*)\n.*?Code: (?:[0-9a-f]{2} )*?([0-9a-f]{2} <.*)", said)
    place = trap and re.fullmatch(r"0010:(?!bpf_)([\w.]+\+0x\w+)/0x\w+", trap[1].strip())
    if not place or not _PATCHED.match(trap[2].replace("<", "").replace(">", "")):
        return None
    return place[1]


def keep(guest: record.Record, place: str, facts: dict, counted: bool) -> tuple[int, Path]:
    """Notes the fault: how many there were within the time that counts, and where
    the evidence of this one is."""
    _EVIDENCE.mkdir(exist_ok=True)
    evidence = Path(tempfile.mkdtemp(prefix=f"{guest.folder.name}.", dir=_EVIDENCE))
    shutil.copytree(guest.folder, evidence, ignore=shutil.ignore_patterns("lock"), dirs_exist_ok=True)
    line = {"time": int(time.time()), "place": place, "kept": str(evidence.name),
            "counted": counted, **facts}  # fmt: skip
    with cache.locked(record.RUNS / ".lock"):
        with open(LOG, "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        return recent(LOG.read_text(encoding="utf-8"), time.time()), evidence


def recent(log: str, now: float) -> int:
    """Of those that are counted."""
    faults = [json.loads(line) for line in log.splitlines()]
    return sum(now - fault["time"] <= WITHIN_S and fault.get("counted", True) for fault in faults)
