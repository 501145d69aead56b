"""What the run prints."""

import time

from .jobs import GuestJob, Job, Outcome, TestJob

SLOWEST = 10
# Of a failed test's output, at the end of the run once more.
LAST_LINES = 15


class Report:
    def __init__(self, verbose: bool = False, color: bool = False):
        self.verbose = verbose
        self.color = color
        self.began = time.monotonic()

    def say(self, text: str = "") -> None:
        print(text, flush=True)

    def clock(self) -> str:
        return f"[{time.monotonic() - self.began:6.1f}]"

    def paint(self, text: str, code: int) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.color else text

    def start(self, job: Job) -> None:
        self.say(f"{self.clock()} start   {job.name}")

    def end(self, job: Job) -> None:
        failed = job.failed()
        verdict = self.paint("FAILED ", 31) if failed else self.paint("ok     ", 32)
        counts = count(job.outcomes.values())
        about = f"{job.seconds:.1f} s"
        if isinstance(job, TestJob):
            about = f"{counts}, {about}"
            if job.release and job.kind == "guest":
                about += f", Linux {job.release}"
        self.say(f"{self.clock()} {verdict} {job.name}: {about}")
        if self.verbose and isinstance(job, TestJob):
            for outcome in job.outcomes.values():
                self.say(f"{'':9}{outcome.status:8} {outcome.seconds:6.2f} s  {outcome.id}")
        shown = set()
        for outcome in failed:
            self.say(f"{'':9}--- {outcome.id}: {outcome.why}")
            # Tests of one job may share its whole output.
            if outcome.output not in shown:
                self.say(indent(outcome.output))
            shown.add(outcome.output)
        for note in job.notes:
            self.say(f"{'':9}{note}")

    def summary(self, jobs: list[Job], outcomes: list[Outcome], notes: list[str]) -> None:
        self.slowest(jobs)
        self.where_time_goes(jobs)
        for job in jobs:
            if isinstance(job, GuestJob) and job.release:
                self.say(f"kernel: {job.name}: Linux {job.release}")
        for note in [note for job in jobs for note in job.notes] + notes:
            self.say(f"note: {note}")
        for outcome in outcomes:
            if outcome.status == "skipped":
                self.say(f"skipped: {outcome.id} ({outcome.where}): {outcome.why}")
        for outcome in outcomes:
            if outcome.status == "failed":
                self.say(f"failed: {outcome.id} ({outcome.where}): {outcome.why}")
                self.say(indent(essence(outcome.output)))
        self.say(count(outcomes))

    def slowest(self, jobs: list[Job]) -> None:
        tests = [outcome for job in jobs if isinstance(job, TestJob)
                 for outcome in job.outcomes.values()]
        tests.sort(key=lambda outcome: -outcome.seconds)
        if tests:
            self.say(f"\nthe slowest of {len(tests)} tests:")
        for outcome in tests[:SLOWEST]:
            self.say(f"  {outcome.seconds:6.1f} s  {outcome.id} ({outcome.where})")

    def where_time_goes(self, jobs: list[Job]) -> None:
        kinds: dict[str, list[float]] = {}
        for job in jobs:
            kinds.setdefault(job.kind, []).append(job.seconds)
        parts = [f"{kind} {sum(times):.0f} s in {len(times)}" for kind, times in kinds.items()]
        total = sum(job.seconds for job in jobs)
        self.say(f"\n{time.monotonic() - self.began:.0f} s in all; jobs took {total:.0f} s "
                 f"together: {', '.join(parts)}")


def count(outcomes) -> str:
    """The words of the last line."""
    of = {"passed": 0, "failed": 0, "skipped": 0}
    for outcome in outcomes:
        of[outcome.status] += 1
    return ", ".join(f"{number} {status}" for status, number in of.items())


def indent(text: str) -> str:
    return "\n".join(f"{'':11}{line}" for line in text.rstrip().splitlines())


def essence(output: str) -> str:
    """From the first panic on, or the last lines."""
    lines = output.rstrip().splitlines()
    for number, line in enumerate(lines):
        if "panicked at" in line:
            return "\n".join(lines[number:number + LAST_LINES])
    return "\n".join(lines[-LAST_LINES:])
