"""Children that do not outlive this process, however it is told to stop."""

import os
import signal
import subprocess
import threading

_lock = threading.Lock()
_running: set[subprocess.Popen] = set()
_stopped = False


class Interrupted(Exception):
    """Nothing is started any more."""


def run(command, limit_s: float | None = None, **options) -> int | None:
    """Runs it in a process group of its own: its exit status, or None when it
    did not end in time. Ended either way."""
    child = start(command, **options)
    try:
        status = child.wait(limit_s)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        end(child)
    unless_stopped()
    return status


def unless_stopped() -> None:
    """To be called before the end of a child is taken for a verdict."""
    if _stopped:
        raise Interrupted


def start(command, **options) -> subprocess.Popen:
    with _lock:
        if _stopped:
            raise Interrupted
        # Also when this process is killed outright.
        child = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", "--", *command],
                                 stdin=subprocess.DEVNULL, start_new_session=True, **options)
        _running.add(child)
    return child


def end(child: subprocess.Popen, grace_s: float = 10) -> None:
    """Ends the group: asked first (vm/run has QEMU to end), then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is not None:
            break
        os.killpg(child.pid, number)
        try:
            child.wait(grace_s)
        except subprocess.TimeoutExpired:
            pass
    with _lock:
        _running.discard(child)


def end_all() -> None:
    global _stopped
    with _lock:
        _stopped = True
        running = list(_running)
    for child in running:
        end(child)
