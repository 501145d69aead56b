"""The tests that may skip: tests/skips."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from .jobs import Outcome


@dataclass
class Entry:
    test: str
    where: str
    reason: str
    line: int
    # Tests that it stands for, and those of them that skipped.
    ran: int = 0
    skipped: int = 0

    def covers(self, outcome: Outcome) -> bool:
        return fnmatchcase(outcome.id, self.test) and fnmatchcase(outcome.where, self.where)


class Malformed(Exception):
    """A line of the list says too little."""


def read(path: Path) -> list[Entry]:
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        words = line.split(None, 2)
        if len(words) < 3:
            raise Malformed(f"{path}:{number}: a line is TEST WHERE REASON, this is '{line}'")
        entries.append(Entry(*words, line=number))
    return entries


def judge(entries: list[Entry], outcomes: list[Outcome]) -> None:
    """Makes each skip that no entry explains a failure."""
    for outcome in outcomes:
        explained = False
        for entry in entries:
            if entry.covers(outcome):
                entry.ran += 1
                if outcome.status == "skipped":
                    entry.skipped += 1
                    outcome.why += f" (tests/skips: {entry.reason})"
                    explained = True
        if outcome.status == "skipped" and not explained and not outcome.asked_for:
            outcome.status = "failed"
            outcome.why = f"skipped: {outcome.why}. tests/skips does not name it"


def stale(entries: list[Entry], whole_run: bool) -> list[str]:
    """Entries whose tests no longer skip, or are no longer there."""
    lines = []
    for entry in entries:
        if entry.ran and not entry.skipped:
            lines.append(f"tests/skips:{entry.line}: {entry.test} no longer skips ({entry.where})")
        elif whole_run and not entry.ran:
            lines.append(f"tests/skips:{entry.line}: no test is {entry.test} ({entry.where})")
    return lines
