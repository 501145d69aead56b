"""Test binaries on this machine, each in mount and process namespaces of its
own: what a defect leaves behind (processes, BPF file systems) goes with them."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from . import processes
from .tree import Binary

RESULT = re.compile(r"^test result: ", re.MULTILINE)
FAILED = re.compile(r"^test (\S+) \.\.\. FAILED$", re.MULTILINE)
# In the summary: the verdict may be behind what a child of the test printed.
LISTED = re.compile(r"^    (\S+)$", re.MULTILINE)
# The test in which the process ended, or was ended.
OPEN = re.compile(r"^test (\S+) \.\.\. \Z", re.MULTILINE)

# One at a time: tests look at objects of the whole machine. Unit tests do not.
_turn = threading.Lock()


@dataclass
class Outcome:
    """Of one test binary."""

    red: str = ""  # what made it so; empty: green
    skipped: bool = False  # the defect had been caught
    unsteady: str = ""  # what was red at first and then no more
    selection: tuple[str, ...] = ()  # with which it was red once more


def judge(output: str, status: int) -> Outcome:
    """From what libtest printed and how it ended."""
    if failed := failures(output):
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        return Outcome(failed[0] + more)
    if status < 0:
        return Outcome(f"killed by signal {signal.Signals(-status).name}")
    if status != 0 or not RESULT.search(output):
        return Outcome(f"exit status {status}")
    return Outcome()


def failures(output: str) -> list[str]:
    """The tests that failed."""
    _, summary, names = output.rpartition("\nfailures:\n")
    return (LISTED.findall(names) if summary else []) or FAILED.findall(output)


def blamed(output: str) -> list[str]:
    """The tests that made a binary red; empty when it does not tell."""
    return failures(output) or OPEN.findall(output)


def arguments(filters: tuple[str, ...]) -> list[str]:
    return ["--test-threads=1", *filters]


def selecting_nothing(binaries: list[Binary], filters: tuple[str, ...]) -> list[str]:
    """Those of a target's filters that no test of its binaries meets."""
    names = set()
    for binary in binaries:
        every, ignored = (
            subprocess.run([binary.path, "--list", "--format=terse", *options], check=True,
                           stdout=subprocess.PIPE, text=True).stdout.splitlines()
            for options in ((), ("--ignored",)))
        names |= {line.removesuffix(": test") for line in every} - {
            line.removesuffix(": test") for line in ignored}
    return [text for text in filters if not any(text in name for name in names)]


def run(binary: Binary, filters: tuple[str, ...], tree: Path, log: Path, limit_s: float) -> Outcome:
    """Red is what is red twice: the tests that failed run once more, without
    the others; when they are green so, once more as they ran at first, for one
    may need what the tests before it left."""
    first = _once(binary, filters, tree, log, limit_s)
    if not first.red:
        return first
    tests = blamed(log.read_text(errors="replace"))
    selections = {"again": filters}
    if tests:
        selections = {"alone": ("--exact", *tests), **selections}
    for name, selection in selections.items():
        if _once(binary, selection, tree, log.with_suffix(f".{name}.log"), limit_s).red:
            return Outcome(first.red, selection=selection)
    return Outcome(unsteady=first.red)


def _once(binary: Binary, filters: tuple[str, ...], tree: Path, log: Path,
          limit_s: float) -> Outcome:
    environment = {
        **os.environ,
        "CARGO_MANIFEST_DIR": str(tree / binary.target.folder),
        "SYRUP_TEST_STRICT": "1",
    }
    command = [
        # unshare holds back SIGTERM, which processes.start asks for.
        "setpriv", "--pdeathsig", "KILL", "--",
        "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child",
        "--mount-proc", "--", str(binary.path), *arguments(filters),
    ]  # fmt: skip
    # Paths of sockets must be short.
    turn = contextlib.nullcontext() if binary.target.kind == "unit" else _turn
    with turn, tempfile.TemporaryDirectory(
        prefix="syrup-mutant.", ignore_cleanup_errors=True
    ) as temporary, log.open("w") as output:
        # As /tmp itself is: tests have ordinary users run programs in there.
        os.chmod(temporary, 0o1777)
        environment["TMPDIR"] = temporary
        status = processes.run(command, limit_s, cwd=tree, env=environment, stdout=output,
                               stderr=output)
    if status is None:
        return Outcome(f"no end within {limit_s:.0f} s")
    return judge(log.read_text(errors="replace"), status)
