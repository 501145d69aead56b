"""Test binaries in virtual machines. A machine runs those of many defects, one
after another. One that takes the machine down runs again in a new one, and has
been caught when it does so twice; the rest go on there."""

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

# Where something may be left behind.
LEFT_IN = {"proc": "/proc", "scheduler": "/sys/kernel/sched_ext/state", "pins": "/sys/fs/bpf"}

# One entry after another: FOLDER/N.sh runs it, its output is N.log, N.started
# and N.ended (its exit status) tell how far it came. Tests that failed run again,
# alone (N.alone) and, if they are green so, as at first (N.again): see native.run().
# What is red twice runs without the defect (N.control): if that is red twice too, the
# machine is no judge of anything.
# A kernel that complained is no machine for the next one, nor for a second time. Nor
# is one in which something was left behind (N.soiled), as by a test that was killed.
SCRIPT = """\
end() {{ echo "$1" >"$n.new" && mv "$n.new" "$n.ended"; }}
processes() {{ # those that are no kernel threads, nor this shell's, nor udev's for its events
	cat {proc}/[0-9]*/stat 2>/dev/null | awk -v own=$$ -v before=" $* " \\
		'$2 !~ /udev/ && $3 != "Z" && $4 != 2 && $1 != own && $4 != own && !index(before, " " $1 " ") {{ print $1, $2 }}'
}}
left_behind() {{
	grep -H enabled {scheduler}
	ls -d {pins}/syrup* 2>/dev/null
	processes $before
}}
attempt() {{ # STEM [SELECTION...]: leaves $status
	stem=$1
	shift
	case $stem in
	*.control) run=$n.without ;;
	*) run=$entry ;;
	esac
	seen=$(dmesg | wc -l)
	sh "$run" "$@" >"$stem.log" 2>&1
	status=$?
	[ "$stem" != "$n" ] || first=$status
	dmesg | tail -n "+$((seen + 1))" >"$stem.dmesg"
	grep -E '{complaint}' "$stem.dmesg" >"$n.kernel"
	grep -q 'syrup-test: ' "$stem.dmesg" ||
		grep 'sched_ext: .* disabled' "$stem.dmesg" | grep -v 'unregistered from user space' >>"$n.kernel"
	if [ -s "$n.kernel" ]; then
		end "$first"
		exit 0
	fi
	rm -f "$n.kernel"
	{{
		[ "$status" = 0 ] || [ "$status" = 101 ] || echo "it ended with $status"
		left_behind
	}} >"$n.soiled"
	if [ -s "$n.soiled" ]; then
		case $stem in
		"$n") ;;
		*.control) [ "$status" = 0 ] || : >"$n.unsteady" ;;
		*) [ "$status" != 0 ] || : >"$n.unsteady" ;;
		esac
		end "$first"
		exit 0
	fi
	rm -f "$n.soiled"
}}
cd {root}
before=$(processes)
for entry in {folder}/*.sh; do
	n=${{entry%.sh}}
	if [ -e "$n.skip" ]; then
		echo skipped >"$n.ended"
		continue
	fi
	: >"$n.started"
	attempt "$n"
	if [ "$first" != 0 ] && ! [ -e "$n.last" ]; then
		tests=$(sed -nE -e 's/^test ([^ ]+) [.]{{3}} FAILED$/\\1/p' \\
			-e '/^failures:$/,$s/^    ([^ ]+)$/\\1/p' -e '$s/^test ([^ ]+) [.]{{3}} $/\\1/p' "$n.log" | sort -u)
		# No name of a test holds a space.
		[ -z "$tests" ] || attempt "$n.alone" --exact $tests
		if [ -z "$tests" ] || [ "$status" = 0 ]; then
			tests=
			attempt "$n.again"
		fi
		if [ "$status" = 0 ]; then
			: >"$n.unsteady"
		elif [ -e "$n.without" ]; then
			attempt "$n.control" ${{tests:+--exact $tests}}
			[ "$status" = 0 ] || attempt "$n.control" ${{tests:+--exact $tests}}
			[ "$status" = 0 ] || : >"$n.worthless"
		fi
	fi
	end "$first"
done
"""


@dataclass
class Entry:
    """One test binary of one defect."""

    what: str
    binary: Binary
    filters: tuple[str, ...]
    limit_s: float
    # Without the defect.
    control: Binary | None = None
    # What it did to the machine, before another one has told whether it does so again.
    first: Outcome | None = None
    outcome: Outcome | None = None
    attempts: int = 0
    seconds: float = 0


def run(entries: list[Entry], machine: plan.Guest, folder: Path, done) -> None:
    """Gives each entry its outcome; `done` hears of each as it comes. A defect
    that turned one binary red needs no more of them: those are skipped."""
    # Behind those of the run that this one goes on with.
    number = max((int(path.name.rpartition("-")[2]) for path in folder.glob("machine-*")), default=0)
    while waiting := [e for e in entries if e.outcome is None]:
        number += 1
        place = folder / f"machine-{number}"
        place.mkdir(parents=True)
        _one_machine(waiting, machine, place, done)


def _one_machine(entries: list[Entry], kind: plan.Guest, folder: Path, done) -> None:
    for n, entry in enumerate(entries):
        (folder / f"{n:03}.sh").write_text(_script(entry, entry.binary))
        if entry.control:
            (folder / f"{n:03}.without").write_text(_script(entry, entry.control))
        if entry.first:
            (folder / f"{n:03}.last").touch()
    script = folder / "all"
    script.write_text(SCRIPT.format(
        root=shlex.quote(str(ROOT)), folder=folder, complaint=COMPLAINT, **LEFT_IN))
    log = folder / "vm.log"
    total_s = sum(5 * entry.limit_s + 30 for entry in entries)
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
    processes.unless_stopped()
    status = machine.returncode
    if status == NOT_OBTAINABLE:
        raise Error(f"vm/run cannot get what it needs: see {log}")
    running = next((n for n in range(len(entries)) if entries[n].outcome is None), None)
    if running is None:
        return
    entry = entries[running]
    stem = folder / f"{running:03}"
    started = stem.with_suffix(".started").exists()
    if stem.with_suffix(".ended").exists() or (running > 0 and not started):
        return  # the kernel complained about this one or the one before
    entry.attempts += 1
    if stuck or (started and status in DIED):
        what = "the machine hung" if stuck else DIED[status]
        red = Outcome(f"{what}: {log.relative_to(ROOT)}")
        if _repeated(stem):
            # Before that, its tests were red.
            red = judge(stem.with_suffix(".log").read_text(errors="replace"), 1)
        _took_it_down(entry, red, _repeated(stem), done)
    elif started and status != EMULATOR_FAULT:
        raise Error(f"the machine ended with {status}, which says nothing of {entry.what}: see {log}")
    elif entry.attempts == ATTEMPTS:
        what = "emulation breaks the machine" if started else "the machine does not start"
        raise Error(f"{what}: see {log}")


def _watch(machine, entries: list[Entry], folder: Path, done) -> bool:
    """Reads outcomes until the machine ends; true if an entry let its time
    pass without the guest being able to end it."""
    at, attempts = 0, 0
    since = began = time.monotonic()
    while True:
        ended = machine.poll() is not None
        while at < len(entries) and (folder / f"{at:03}.ended").exists():
            entry, stem = entries[at], folder / f"{at:03}"
            entry.seconds = time.monotonic() - began
            outcome = _outcome(stem)
            if stem.with_suffix(".worthless").exists():
                raise Error(f"red without any defect by now: {outcome.red}: see {stem}.control.log")
            soiled = stem.with_suffix(".soiled").exists() and outcome.red
            if soiled or stem.with_suffix(".kernel").exists():
                _took_it_down(entry, outcome, _repeated(stem), done)
            elif entry.first and not outcome.skipped:
                _end(entry, entry.first if outcome.red else Outcome(unsteady=entry.first.red), done)
            else:
                _end(entry, outcome, done)
            if entry.outcome and entry.outcome.red:
                for n in range(at + 1, len(entries)):
                    if entries[n].what == entry.what:
                        (folder / f"{n:03}.skip").touch()
            at, attempts = at + 1, 0
            since = began = time.monotonic()
        if ended:
            return False
        if at < len(entries):
            seen = _attempts(folder / f"{at:03}")
            if seen > attempts:
                attempts, since = seen, time.monotonic()
            limit_s = entries[at].limit_s + 60 if attempts else BOOT_S
            if time.monotonic() - since > limit_s:
                return attempts > 0
        time.sleep(0.2)


def _took_it_down(entry: Entry, red: Outcome, repeated: bool, done) -> None:
    """A machine in which this happened is none to see whether it happens again."""
    if entry.first or repeated:
        _end(entry, entry.first or red, done)
    else:
        entry.first = red


def _attempts(stem: Path) -> int:
    """How many of one entry have begun in this machine."""
    return sum(stem.with_suffix(end).exists()
               for end in (".started", ".alone.log", ".again.log", ".control.log"))


def _repeated(stem: Path) -> bool:
    return _attempts(stem) > 1


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
    if stem.with_suffix(".unsteady").exists():
        return Outcome(unsteady=outcome.red)
    return outcome


def _end(entry: Entry, outcome: Outcome, done) -> None:
    entry.outcome = outcome
    done(entry)


def _script(entry: Entry, binary: Binary) -> str:
    command = ["timeout", "--kill-after=5", f"{entry.limit_s:.0f}", str(binary.path),
               *arguments(())]
    return "\n".join([
        f"# {entry.what}",
        f"export CARGO_MANIFEST_DIR={shlex.quote(str(ROOT / binary.target.folder))}",
        "export SYRUP_TEST_STRICT=1",
        "[ $# -gt 0 ] || set -- " + shlex.join(entry.filters),
        "exec " + shlex.join(command) + ' "$@"',
        "",
    ])  # fmt: skip
