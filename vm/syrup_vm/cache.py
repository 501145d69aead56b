"""The cache folder: shared by all checkouts of a user, filled by one process
at a time. Nothing in it is precious; removing it costs a download."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path


def folder(*parts: str) -> Path:
    """`$SYRUP_CACHE/parts...`; its parent exists afterwards."""
    root = os.environ.get("SYRUP_CACHE")
    if not root:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = Path(home) / "syrup"
    path = Path(root).absolute().joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def exclusive(name: str):
    """Serialises the processes that fill the part `name` of the cache. The
    kernel drops the lock when its owner dies, so no stale lock can remain."""
    with locked(folder(f"{name}.lock")):
        yield


@contextlib.contextmanager
def locked(path: Path):
    with open(path, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def new_folder(target: Path):
    """Yields an empty folder that becomes `target` if the body succeeds:
    whoever sees `target` sees all of it, even after a crash."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        work.chmod(0o755)
        yield work
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
