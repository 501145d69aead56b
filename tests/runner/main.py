"""Builds and runs every test: natively, and in virtual machines where it needs a
kernel that this machine does not have.

A test that skips fails the run unless tests/skips names it; so does a selection
without a test, and a kernel that cannot be downloaded (SYRUP_ALLOW_OFFLINE=1 lets
its tests skip). Without root, native tests that need it run in a guest.
The last line is 'N passed, N failed, N skipped'.
"""

import argparse
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from . import ROOT, jobs, plan, skips
from .jobs import GuestJob, Job, Outcome, Test, TestJob
from .report import Report
from .schedule import Scheduler

EXAMPLES = """\
examples:
  tests/run                            everything
  tests/run --native                   without virtual machines
  tests/run --filter socket_select     tests with this in PACKAGE/TARGET::NAME
  tests/run --job thread-oldest        what one job runs: a guest, or a PACKAGE/TARGET
  tests/run --list                     every test and where it runs
  make test ARGS='--filter rescue'     the same with what it needs installed
"""


# An ignored test that another one runs: it has the word "child" in its name.
CHILD = re.compile(r"(::|_|^)child(_|$)")


class Busy(Exception):
    """Two runs at a time would take each other's plans."""


class Unlistable(Exception):
    """A test binary does not tell its tests."""


def arguments(argv):
    parser = argparse.ArgumentParser(
        prog="tests/run", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--native", action="store_true",
                        help="no virtual machines: their tests count as skipped")
    parser.add_argument("--filter", metavar="TEXT", default="",
                        help="only tests with TEXT in PACKAGE/TARGET::NAME")
    parser.add_argument("--job", metavar="NAME", action="append", default=[],
                        help="only this job (also several times)")
    parser.add_argument("--list", action="store_true", help="list the tests and run none")
    parser.add_argument("--slots", metavar="N", type=int, default=os.cpu_count(),
                        help="jobs at a time (default: one per core, here %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="a line for each test")
    return parser.parse_args(argv)


def tests_of(binary: tuple[str, Path, Path]) -> tuple[list[Test], list[Test]]:
    """Its tests, and those that it ignores, but for child processes of others."""
    target, path, folder = binary

    def names(*options):
        try:
            listed = subprocess.run([path, "--list", "--format", "terse", *options], cwd=folder,
                                    stdout=subprocess.PIPE, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unlistable(f"cannot list its tests: {error}") from error
        if listed.returncode != 0:
            raise Unlistable(f"cannot list its tests: exit status {listed.returncode}")
        return [line.removesuffix(": test") for line in listed.stdout.splitlines()
                if line.endswith(": test")]

    def made(chosen):
        return [Test(f"{target}::{name}", name, path, folder) for name in chosen]

    ignored = names("--ignored")
    return (made(name for name in names() if name not in ignored),
            made(name for name in ignored if not CHILD.search(name)))


class Run:
    """One run: which jobs there are, and what became of them."""

    def __init__(self, options, report: Report, *, guests=plan.GUESTS, folder=ROOT / "target/tests",
                 skip_list=ROOT / "tests/skips", vm=ROOT / "vm", root=os.geteuid() == 0):
        self.options = options
        self.report = report
        self.guests = guests
        self.folder = folder
        self.entries = skips.read(skip_list)
        self.vm = vm
        self.root = root
        self.offline = os.environ.get(jobs.OFFLINE) == "1"
        self.scheduler = Scheduler(options.slots, report.start, self.ended)
        self.extra: list[Outcome] = []
        self.notes: list[str] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        self.times_file = folder / "times.json"
        try:
            self.times = json.loads(self.times_file.read_text())
        except (OSError, ValueError):
            self.times = {}

    # What there is to do.

    def selective(self) -> bool:
        return bool(self.options.filter or self.options.job)

    def wanted(self, job: str) -> bool:
        return not self.options.job or job in self.options.job

    def add(self, *added: Job) -> None:
        for job in added:
            job.expected_s = self.times.get(job.name, job.expected_s)
            if isinstance(job, TestJob):
                job.write_plan()
        self.scheduler.add(*added)

    def checks(self) -> list[Job]:
        """What needs no build, and what cargo does after it."""
        boots = [] if self.options.native else ["--boot"]
        found: list[Job] = [
            Job("Rust is formatted", ["cargo", "fmt", "--all", "--check"], 120),
            Job("C is formatted", ["scripts/clang-format", "--dry-run", "--Werror"], 120),
            jobs.PythonTests("the runner's own tests", [
                sys.executable, "-B", "-m", "unittest", "discover", "--verbose",
                "--start-directory", "tests/runner", "--top-level-directory", "tests"], 300),
            jobs.PythonTests("the tests of make mutants",
                             ["tests/mutants/test_mutation.py", "--verbose"], 300),
            # One of the two at a time: both take cargo's lock.
            Job("no lint fires", ["cargo", "clippy", "--workspace", "--all-targets", "--quiet"],
                1200, lock="cargo", after=("build",), expected_s=60),
            jobs.DocTests("examples in the documentation",
                          ["cargo", "test", "--workspace", "--doc"],
                          600, lock="cargo", after=("build",), expected_s=20),
            jobs.PythonTests("vm/test", ["vm/test", *boots, "--verbose"], 1200, expected_s=90,
                             may_skip=self.options.native or self.offline),
        ]
        return [job for job in found if self.wanted(job.name)]

    def machines(self, tests: list[Test]) -> list[GuestJob]:
        found = []
        for guest in self.guests:
            mine = [test for test in tests if selects(guest, test)]
            if mine:
                found.append(self.guest_job(guest, mine))
        return found

    def guest_job(self, guest: plan.Guest, tests: list[Test]) -> GuestJob:
        job = GuestJob(
            guest.name, [], plan_limit(guest), folder=self.folder, expected_s=guest.expected_s,
            after=(f"kernel {guest.kernel}",), guest=guest.name, tests=tests,
            test_limit_s=guest.test_limit_s,
            environment={"SYRUP_TEST_KERNEL": guest.kernel},
            allow_offline=self.offline)
        job.command = jobs.guest_command(
            guest.kernel, guest.name, cpus=guest.cpus, memory=guest.memory, icount=guest.icount,
            limit_s=guest.limit_s, plan=job.plan(),
            vm_run=self.vm / "run")
        return job

    def native_job(self, target: str, tests: list[Test]) -> TestJob:
        job = TestJob(target, [], 3600, folder=self.folder, tests=tests,
                      test_limit_s=plan.NATIVE_TEST_LIMIT_S)
        agent = str(Path(__file__).with_name("agent.py"))
        # Of its own, so that what a killed test mounted goes with it.
        mounts = ["unshare", "--mount", "--propagation", "private", "--"]
        job.command = [*(mounts if os.geteuid() == 0 else []),
                       sys.executable, "-I", "-S", agent, str(job.plan())]
        return job

    def plan_tests(self, binaries: list[tuple[str, Path, Path]]) -> list[TestJob]:
        """The jobs of the selected tests."""
        guest_targets = {spec.partition("::")[0] for guest in self.guests for spec in guest.tests}
        found: list[TestJob] = []
        for_guests: list[Test] = []
        for binary in sorted(binaries):
            target = binary[0]
            try:
                tests, ignored = ([test for test in found if self.options.filter in test.id]
                                  for found in tests_of(binary))
            except Unlistable as error:
                self.extra.append(Outcome(target, "nowhere", "failed", str(error)))
                continue
            if self.wanted(target) or target in guest_targets:
                self.extra += [Outcome(test.id, "nowhere", "skipped", "#[ignore]")
                               for test in ignored]
            if target in guest_targets:
                for_guests += tests
            elif tests:
                found.append(self.native_job(target, tests))
        for test in for_guests:
            if not any(selects(guest, test) for guest in self.guests):
                self.extra.append(Outcome(test.id, "nowhere", "failed",
                                          "no line of tests/runner/plan.py selects it"))
        if not self.selective():
            for guest in self.guests:
                for spec in guest.tests:
                    if not any(matches(spec, test) for test in for_guests):
                        self.extra.append(Outcome(
                            spec, guest.name, "failed",
                            "tests/runner/plan.py names it, and there is no such test"))
        found += self.machines(for_guests)
        return [job for job in found if self.wanted(job.name)]

    # How it goes.

    def ended(self, job: Job) -> None:
        self.report.end(job)
        (self.folder / f"{job.name.replace('/', '-')}.log").write_text(job.text() + "\n")
        if not job.failed():
            self.times[job.name] = round(job.seconds, 1)
        if job.vital and job.failed():
            self.notes.append(f"nothing else was run: {job.name} failed")
            self.scheduler.drop_waiting()
        elif isinstance(job, jobs.Build):
            self.built(job)
        elif job.kind == "native" and isinstance(job, TestJob) and not self.root:
            self.with_root_in_a_guest()

    def built(self, build: jobs.Build) -> None:
        planned = self.plan_tests(build.binaries)
        if self.options.native:
            for job in planned:
                if isinstance(job, GuestJob):
                    self.extra += [
                        Outcome(test, job.name, "skipped", "--native was given", asked_for=True)
                        for test in job.by_id]
            planned = [job for job in planned if not isinstance(job, GuestJob)]
        self.add(*planned)
        self.prepare(guest.kernel for guest in self.guests
                     if any(job.name == guest.name for job in planned))

    def prepare(self, roles: Iterable[str]) -> None:
        """Downloads kernels, which takes no slot."""
        for role in sorted(set(roles)):
            name = f"kernel {role}"
            if not self.scheduler.knows(name):
                self.add(jobs.Preparation(name, [str(self.vm / "kernel"), role], 900, slots=0))

    def with_root_in_a_guest(self) -> None:
        """Once the last native job has ended, what skipped for want of root."""
        native = [job for job in [*self.scheduler.waiting, *(
            running.job for running in self.scheduler.running.values())] if job.kind == "native"]
        if native or self.options.native:
            return
        missed = []
        for job in self.scheduler.ended:
            if isinstance(job, TestJob) and job.kind == "native":
                for outcome in list(job.outcomes.values()):
                    if outcome.status == "skipped" and outcome.why == "needs root":
                        missed.append(job.by_id[outcome.id])
                        del job.outcomes[outcome.id]
        if missed:
            self.add(self.guest_job(plan.ROOT_GUEST, missed))

    def claim(self):
        """The folder is one run's: keep what this returns."""
        lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise Busy(f"another run uses {self.folder}: let it end first") from None
        return lock

    def run(self) -> int:
        with self.claim():
            return self.run_all()

    def run_all(self) -> int:
        build = jobs.Build(
            "build", ["cargo", "test", "--workspace", "--no-run",
                      "--message-format=json-render-diagnostics"],
            3600, lock="cargo", shows_progress=True, expected_s=10000)
        checks = [] if self.options.filter else self.checks()
        # A check that needs no test binary needs no build either.
        if not self.options.job or len(checks) < len(self.options.job):
            self.add(build)
        if not self.options.native and not self.selective():
            # Beside the build.
            self.prepare(guest.kernel for guest in self.guests)
        self.add(*checks)
        self.scheduler.run()
        return self.finish()

    def nothing(self, ended: list[Job], outcomes: list[Outcome]) -> list[Outcome]:
        """A failure for each part of the selection in which there is no test."""
        if any(job.vital and job.failed() for job in ended):
            return []
        why = "no such test: see tests/run --list"
        empty = [Outcome(f"--job {name}", "nowhere", "failed", why) for name in self.options.job
                 if not any(job.name == name for job in ended)]
        ran = any(outcome.status != "skipped" for outcome in [*outcomes, *empty])
        if not ran and not any(isinstance(job, GuestJob) and job.offline for job in ended):
            what = f"--filter {self.options.filter}" if self.options.filter else "this run"
            empty.append(Outcome(what, "nowhere", "failed", why))
        return empty

    def finish(self) -> int:
        ended = self.scheduler.ended
        outcomes = [outcome for job in ended for outcome in job.outcomes.values()] + self.extra
        outcomes += self.nothing(ended, outcomes)
        skips.judge(self.entries, outcomes)
        whole = not self.selective() and not self.options.native
        self.notes += skips.stale(self.entries, whole)
        if not self.root and self.options.native and any(
                "needs root" in outcome.why for outcome in outcomes):
            self.notes.append("root is missing: without --native those tests run in a guest")
        self.times_file.write_text(json.dumps(self.times, indent=1, sort_keys=True) + "\n")
        self.report.summary(ended, outcomes, self.notes)
        return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def matches(spec: str, test: Test) -> bool:
    return test.id.startswith(spec if "::" in spec else f"{spec}::")


def selects(guest: plan.Guest, test: Test) -> bool:
    return any(matches(spec, test) for spec in guest.tests)


def plan_limit(guest: plan.Guest) -> float:
    """The machine's own limits come first, unless its host is so crowded that boots
    take a quarter of an hour."""
    return guest.limit_s + 900


def list_tests(run: Run) -> int:
    build = jobs.Build("build", [], 0)
    done = subprocess.run(["cargo", "test", "--workspace", "--no-run",
                           "--message-format=json-render-diagnostics"],
                          cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        return 1
    for line in done.stdout.splitlines():
        build.line(line)
    planned = run.plan_tests(build.binaries)
    for job in planned:
        for test in job.by_id:
            print(f"{job.where():15} {test}")
    for outcome in run.extra:
        print(f"{outcome.where:15} {outcome.id}: {outcome.why}")
    return 0 if planned and not run.extra else 1


def main(argv=None) -> int:
    options = arguments(argv)
    # Stopped by whoever started us: as Ctrl-C, which a background job of a script
    # is started without.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    report = Report(options.verbose, sys.stdout.isatty())
    try:
        run = Run(options, report)
        return list_tests(run) if options.list else run.run()
    except (Busy, skips.Malformed) as error:
        print(f"tests/run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntests/run: interrupted, all jobs were ended", file=sys.stderr)
        return 130
