"""Runs jobs side by side on a number of slots, the longest first."""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable

from . import ROOT
from .jobs import Job

# From SIGTERM to SIGKILL: a guest is stopped and its files are removed.
GRACE_S = 15


class Running:
    """A job's process."""

    def __init__(self, job: Job):
        self.job = job
        self.started = time.monotonic()
        self.deadline = self.started + job.limit_s
        self.out_of_time = False
        self.partial = b""
        self.process = subprocess.Popen(
            # A program that is not there fails its job, by env's own words.
            ["env", *job.command], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=None if job.shows_progress else subprocess.STDOUT,
            # Ctrl-C comes to us alone, and we end the jobs.
            start_new_session=True, env={**os.environ, **job.environment})
        os.set_blocking(self.process.stdout.fileno(), False)
        self.pidfd = os.pidfd_open(self.process.pid)

    def read(self) -> bool:
        """Passes on what there is; false at the end."""
        while True:
            try:
                data = os.read(self.process.stdout.fileno(), 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            *lines, self.partial = (self.partial + data).split(b"\n")
            for line in lines:
                self.job.line(line.decode("utf-8", "replace"))

    def finish(self) -> int | None:
        """Its exit status, or None if its time was up."""
        status = self.process.wait()
        self.kill(signal.SIGKILL)
        self.read()
        if self.partial:
            self.job.line(self.partial.decode("utf-8", "replace"))
        self.close()
        return None if self.out_of_time else status

    def close(self):
        self.process.stdout.close()
        os.close(self.pidfd)

    def kill(self, number: int) -> None:
        """The whole group: what a job leaves behind goes with it."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass


class Scheduler:
    """`on_start` and `on_end` are told of each job; the latter may add jobs."""

    def __init__(self, slots: int, on_start: Callable[[Job], None], on_end: Callable[[Job], None]):
        self.slots = slots
        self.on_start = on_start
        self.on_end = on_end
        self.waiting: list[Job] = []
        self.running: dict[int, Running] = {}
        self.ended: list[Job] = []
        self.selector = selectors.DefaultSelector()

    def add(self, *jobs: Job) -> None:
        self.waiting += jobs

    def knows(self, name: str) -> bool:
        """Whether a job of that name waits, runs or has ended."""
        running = [running.job for running in self.running.values()]
        return any(job.name == name for job in [*self.waiting, *running, *self.ended])

    def drop_waiting(self) -> list[Job]:
        dropped, self.waiting = self.waiting, []
        return dropped

    def run(self) -> None:
        """Until all have ended. An exception, KeyboardInterrupt above all, ends
        every running job first."""
        try:
            while self.waiting or self.running:
                self.start_what_can()
                if not self.running:
                    names = ", ".join(f"{job.name} (after {job.after})" for job in self.waiting)
                    raise RuntimeError(f"jobs wait for what never comes: {names}")
                self.watch()
        finally:
            self.end_everything()

    def start_what_can(self) -> None:
        ended = {job.name for job in self.ended}
        locked = {running.job.lock for running in self.running.values()}
        free = self.slots - sum(running.job.slots for running in self.running.values())
        for job in sorted(self.waiting, key=lambda job: -job.expected_s):
            # What a job waits for may not be part of this run at all.
            ready = all(name in ended or not self.knows(name) for name in job.after)
            if ready and job.slots <= free and not (job.lock and job.lock in locked):
                self.waiting.remove(job)
                free -= job.slots
                locked.add(job.lock)
                self.start(job)

    def start(self, job: Job) -> None:
        self.on_start(job)
        running = Running(job)
        self.running[running.process.pid] = running
        self.selector.register(running.process.stdout, selectors.EVENT_READ, (running, "output"))
        self.selector.register(running.pidfd, selectors.EVENT_READ, (running, "end"))

    def watch(self) -> None:
        nearest = min(running.deadline for running in self.running.values())
        events = self.selector.select(max(0, nearest - time.monotonic()))
        # Output before ends: the last lines belong to the job.
        for key, _ in sorted(events, key=lambda event: event[0].data[1] == "end"):
            running, what = key.data
            if what == "output":
                if not running.read():
                    self.selector.unregister(running.process.stdout)
            else:
                self.finish(running)
        for running in list(self.running.values()):
            if time.monotonic() > running.deadline:
                # First politely, so that a guest can be taken down; then not.
                running.kill(signal.SIGKILL if running.out_of_time else signal.SIGTERM)
                running.out_of_time = True
                running.deadline = time.monotonic() + GRACE_S

    def finish(self, running: Running) -> None:
        self.forget(running)
        job = running.job
        status = running.finish()
        job.seconds += time.monotonic() - running.started
        if job.done(status):
            self.start(job)
            return
        self.ended.append(job)
        self.on_end(job)

    def forget(self, running: Running) -> None:
        del self.running[running.process.pid]
        for watched in (running.process.stdout, running.pidfd):
            try:
                self.selector.unregister(watched)
            except KeyError:
                pass

    def end_everything(self) -> None:
        left = list(self.running.values())
        for running in left:
            self.forget(running)
            running.kill(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for running in left:
            try:
                running.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
            running.kill(signal.SIGKILL)
            running.process.wait()
            running.close()
