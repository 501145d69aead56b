"""What is kept of each guest: a folder below target/vm.

    command.sh   what it ran
    kmsg         its kernel's log, as records of /dev/kmsg; dmesg: the same, readable
    console      what its kernel said in a panic
    early        what it said before it had drivers, if it died then
    result.json  how it was started, how it ended, what was judged

A folder belongs to the vm/run that holds the lock in it. The newest are kept."""

import contextlib
import datetime
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from pathlib import Path

from . import Error, cache

REPOSITORY = Path(__file__).resolve().parent.parent.parent
RUNS = REPOSITORY / "target" / "vm"

KEPT = 50

_RESULT = "result.json"


class Record:
    """The folder of one guest, and what is known about it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._begun = time.monotonic()
        self._facts: dict = {
            "name": folder.name,
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }

    def note(self, **facts) -> None:
        """Adds to result.json. Written each time, so that whatever kills vm/run
        leaves what was known."""
        self._facts.update(facts, duration_s=round(time.monotonic() - self._begun, 1))
        text = json.dumps(self._facts, indent=2) + "\n"
        new = self.folder / f"{_RESULT}.new"
        new.write_text(text, encoding="utf-8")
        new.rename(self.folder / _RESULT)

    def knows(self, fact: str) -> bool:
        return fact in self._facts

    def set_aside(self, name: str) -> None:
        """Moves what a guest left into a folder: nothing may be taken for the next one's."""
        old = self.folder / name
        old.mkdir()
        for path in self.folder.iterdir():
            if path.name not in (name, "lock", _RESULT):
                path.rename(old / path.name)

    def path(self) -> str:
        """For messages."""
        return os.path.relpath(self.folder, REPOSITORY)


@contextlib.contextmanager
def new(name: str | None):
    """Yields the record of a new guest; of an earlier one of the same name
    nothing remains."""
    if name is not None and not re.fullmatch(r"\w[\w.+-]*", name):
        raise Error(f"--name {name}: letters, digits and .+-_ only, please")
    if name is not None and name.startswith("emulator-faults"):
        raise Error(f"--name {name}: such names are taken (vm/README.md)")
    RUNS.mkdir(parents=True, exist_ok=True)
    with cache.locked(RUNS / ".lock"):
        if name is None:
            name = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        lock = _claim(RUNS / name)
        if lock is None:
            raise Error(f"a guest named {name} is running: give this one another --name")
        _prune()
    try:
        yield Record(RUNS / name)
    finally:
        lock.close()


def _claim(folder: Path):
    """An empty `folder` and the lock that keeps it, or None."""
    folder.mkdir(exist_ok=True)
    lock = _lock(folder)
    if lock is not None:
        for old in folder.iterdir():
            if old.name == "lock":
                continue
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    return lock


def _lock(folder: Path):
    lock = open(folder / "lock", "w", encoding="utf-8")
    try:
        # Dropped by the kernel when vm/run dies.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock
    except BlockingIOError:
        lock.close()
        return None


def _prune() -> None:
    folders = [f for f in RUNS.iterdir() if (f / "lock").exists()]
    folders.sort(key=lambda f: f.stat().st_mtime, reverse=True)
    for old in folders[KEPT:]:
        lock = _lock(old)
        if lock is not None:
            shutil.rmtree(old, ignore_errors=True)
            lock.close()
