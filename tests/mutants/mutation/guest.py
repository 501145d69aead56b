"""Test binaries in virtual machines. A machine runs those of many defects, one
after another; one that takes the machine down has been caught, and the rest go
on in a new machine."""

import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from . import ROOT, Error, processes
from .native import Outcome, arguments, judge
from .targets import plan
from .tree import Binary

# Exit statuses of vm/run (vm/README.md): what a defect may do to a machine ...
DIED = {123: "the machine's kernel complained", 124: "the machine was out of time",
        125: "the machine died"}  # fmt: skip
# ... and what it may not.
EMULATOR_FAULT, NOT_OBTAINABLE = 126, 77
ATTEMPTS = 3
BOOT_S = 300

# What the kernel says when a defect reached it.
# A scheduler that the kernel threw out counts, unless the test announced it
# (vm/README.md).
COMPLAINT = r"BUG:|WARNING:|Oops|general protection|rcu.*(stall|self-detected)|soft lockup|hung task|blocked for more than"

# One entry after another: FOLDER/N.sh runs it, its output is N.log, N.started
# and N.ended (its exit status) tell how far it came. A kernel that complained
# is no machine for the next one.
SCRIPT = """\
cd {root}
for entry in {folder}/*.sh; do
	n=${{entry%.sh}}
	if [ -e "$n.skip" ]; then
		echo skipped >"$n.ended"
		continue
	fi
	seen=$(dmesg | wc -l)
	: >"$n.started"
	sh "$entry" >"$n.log" 2>&1
	status=$?
	dmesg | tail -n "+$((seen + 1))" >"$n.dmesg"
	grep -E '{complaint}' "$n.dmesg" >"$n.kernel"
	grep -q 'syrup-test: ' "$n.dmesg" ||
		grep 'sched_ext: .* disabled' "$n.dmesg" | grep -v 'unregistered from user space' >>"$n.kernel"
	if [ -s "$n.kernel" ]; then
		echo "$status" >"$n.new" && mv "$n.new" "$n.ended"
		exit 0
	fi
	rm -f "$n.kernel"
	echo "$status" >"$n.new" && mv "$n.new" "$n.ended"
done
"""


@dataclass
class Entry:
    """One test binary of one defect."""

    what: str
    binary: Binary
    filters: tuple[str, ...]
    limit_s: float
    outcome: Outcome | None = None
    attempts: int = 0
    seconds: float = 0


def run(entries: list[Entry], machine: plan.Guest, folder: Path, done) -> None:
    """Gives each entry its outcome; `done` hears of each as it comes. A defect
    that turned one binary red needs no more of them: those are skipped."""
    number = 0
    while waiting := [e for e in entries if e.outcome is None]:
        number += 1
        place = folder / f"machine-{number}"
        place.mkdir(parents=True)
        _one_machine(waiting, machine, place, done)


def _one_machine(entries: list[Entry], kind: plan.Guest, folder: Path, done) -> None:
    for n, entry in enumerate(entries):
        (folder / f"{n:03}.sh").write_text(_script(entry))
    script = folder / "all"
    script.write_text(SCRIPT.format(
        root=shlex.quote(str(ROOT)), folder=folder, complaint=COMPLAINT))
    log = folder / "vm.log"
    total_s = sum(entry.limit_s + 30 for entry in entries)
    command = ["vm/run", "--kernel", kind.kernel, "--cpus", str(kind.cpus),
               "--memory", kind.memory, *(["--icount"] if kind.icount else []),
               "--uncounted", "--timeout", f"{total_s:.0f}", "--", "sh", str(script)]
    environment = {**os.environ, "SYRUP_TEST_KERNEL": kind.kernel}
    with log.open("w") as output:
        machine = processes.start(command, cwd=ROOT, env=environment, stdout=output,
                                  stderr=output)
        try:
            stuck = _watch(machine, entries, folder, done)
        finally:
            processes.end(machine)
    status = machine.returncode
    if status == NOT_OBTAINABLE:
        raise Error(f"vm/run cannot get what it needs: see {log}")
    running = next((n for n in range(len(entries)) if entries[n].outcome is None), None)
    if running is None:
        return
    entry = entries[running]
    started = (folder / f"{running:03}.started").exists()
    if running > 0 and not started:
        return  # the kernel complained about the one before
    entry.attempts += 1
    if stuck:
        _end(entry, Outcome(f"the machine hung: {log.relative_to(ROOT)}"), done)
    elif started and status in DIED:
        _end(entry, Outcome(f"{DIED[status]}: {log.relative_to(ROOT)}"), done)
    elif started and status != EMULATOR_FAULT:
        raise Error(f"the machine ended with {status}, which says nothing of {entry.what}: see {log}")
    elif entry.attempts == ATTEMPTS:
        what = "emulation breaks the machine" if started else "the machine does not start"
        raise Error(f"{what}: see {log}")


def _watch(machine, entries: list[Entry], folder: Path, done) -> bool:
    """Reads outcomes until the machine ends; true if an entry let its time
    pass without the guest being able to end it."""
    at, since = 0, time.monotonic()
    while True:
        ended = machine.poll() is not None
        while at < len(entries) and (folder / f"{at:03}.ended").exists():
            entry = entries[at]
            entry.seconds = time.monotonic() - since
            _end(entry, _outcome(folder / f"{at:03}"), done)
            if entry.outcome.red:
                for n in range(at + 1, len(entries)):
                    if entries[n].what == entry.what:
                        (folder / f"{n:03}.skip").touch()
            at, since = at + 1, time.monotonic()
        if ended:
            return False
        started = at < len(entries) and (folder / f"{at:03}.started").exists()
        if at < len(entries):
            limit_s = entries[at].limit_s + 60 if started else BOOT_S
            if time.monotonic() - since > limit_s:
                return started
        time.sleep(0.2)


def _outcome(stem: Path) -> Outcome:
    status = stem.with_suffix(".ended").read_text().strip()
    if status == "skipped":
        return Outcome(skipped=True)
    status = int(status)
    outcome = judge(stem.with_suffix(".log").read_text(errors="replace"), status)
    if status in (124, 137) and not outcome.red.count("::"):
        outcome.red = "no end within its time"
    complaint = stem.with_suffix(".kernel")
    if complaint.exists() and not outcome.red:
        outcome.red = "the kernel: " + complaint.read_text(errors="replace").splitlines()[0].strip()
    return outcome


def _end(entry: Entry, outcome: Outcome, done) -> None:
    entry.outcome = outcome
    done(entry)


def _script(entry: Entry) -> str:
    command = ["timeout", "--kill-after=5", f"{entry.limit_s:.0f}", str(entry.binary.path),
               *arguments(entry.filters)]
    return "\n".join([
        f"# {entry.what}",
        f"export CARGO_MANIFEST_DIR={shlex.quote(str(ROOT / entry.binary.target.folder))}",
        "export SYRUP_TEST_STRICT=1",
        "exec " + shlex.join(command),
        "",
    ])  # fmt: skip
