"""Jobs: commands that report tests, and what became of each test."""

import json
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import ROOT, agent

# Exit statuses of vm/run: see vm/README.md. The agent has none of them.
VM_NOT_OBTAINABLE = 77
VM_COMPLAINT = 123
VM_TIMED_OUT = 124
VM_FAILED = 125
VM_EMULATOR_FAULT = 126
# It says so when the guest did not boot at first.
VM_BOOTS_AGAIN = "trying once more"
VM_STATUS = {
    VM_NOT_OBTAINABLE: "its kernel cannot be downloaded",
    VM_COMPLAINT: "the guest's kernel complained",
    VM_TIMED_OUT: "the guest's time was up",
    VM_FAILED: "the guest died",
    VM_EMULATOR_FAULT: "emulation broke the guest twice",
}


@dataclass(frozen=True)
class Test:
    """A test of a libtest binary. Its id is PACKAGE/TARGET::NAME."""

    id: str
    name: str
    binary: Path
    folder: Path


@dataclass
class Outcome:
    """What became of a test. `where` is `native` or the name of a guest."""

    id: str
    where: str
    status: str  # passed, failed, skipped
    why: str = ""
    output: str = ""
    seconds: float = 0
    # A skip that whoever started the run asked for.
    asked_for: bool = False


@dataclass
class Job:
    """A command, run when everything in `after` has ended. One that fails is
    one failed test, unless a subclass reads more from its output."""

    name: str
    command: list[str]
    limit_s: float
    expected_s: float = 10
    after: tuple[str, ...] = ()
    # Jobs with the same lock exclude each other.
    lock: str | None = None
    # A job that only waits for the network, or looks after its own slots, takes none.
    slots: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    # Standard error goes straight to the terminal: cargo shows its progress there.
    shows_progress: bool = False
    # Not fields: a kind of job has them.
    kind = "check"
    # Others depend on it: if it fails, nothing else is run.
    vital = False

    def __post_init__(self):
        self.log: list[str] = []
        self.outcomes: dict[str, Outcome] = {}
        self.notes: list[str] = []
        self.seconds = 0.0

    def line(self, text: str) -> None:
        self.log.append(text)

    def done(self, status: int | None) -> bool:
        """Judges the exit status (None: out of time). True: once more."""
        if status == 0:
            self.record(self.name, "passed")
        else:
            self.record(self.name, "failed", how_it_ended(status, self.limit_s), self.text())
        return False

    def record(self, test: str, status: str, why: str = "", output: str = "",
               seconds: float = 0) -> None:
        # What failed once is not forgotten when it passes the second time.
        if test in self.outcomes and self.outcomes[test].status == "failed":
            return
        self.outcomes[test] = Outcome(test, self.where(), status, why, output, seconds)

    def where(self) -> str:
        return "native"

    def text(self) -> str:
        return "\n".join(self.log)

    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes.values() if outcome.status == "failed"]


def how_it_ended(status: int | None, limit_s: float) -> str:
    if status is None:
        return f"did not end within {limit_s:g} s"
    if status < 0:
        return f"killed by signal {-status}"
    return f"exit status {status}"


class DocTests(Job):
    """`cargo test --doc`: a line a test."""

    LINE = re.compile(r"^test (.+) \.\.\. (ok|FAILED|ignored)\b")

    def line(self, text):
        super().line(text)
        if match := self.LINE.match(text):
            self.record(match[1], *{"ok": ("passed", ""), "FAILED": ("failed", "failed"),
                                    "ignored": ("skipped", "ignored")}[match[2]])

    def done(self, status):
        for outcome in self.failed():
            outcome.output = self.text()
        if not self.outcomes or (status != 0 and not self.failed()):
            self.record(self.name, "failed",
                        how_it_ended(status, self.limit_s) if status != 0 else "no test ran",
                        self.text())
        return False


@dataclass
class PythonTests(Job):
    """A unittest program with --verbose: a line a test, unless the test prints too."""

    # It skips what whoever started the run did not want.
    may_skip: bool = False

    NAME = re.compile(r"^(\w+ \([\w.]+\))")
    RESULT = re.compile(r"(?:^|\.\.\. )(ok|FAIL|ERROR|skipped (.*))$")
    TOTAL = re.compile(r"^Ran (\d+) tests?")

    def __post_init__(self):
        super().__post_init__()
        self.current = None
        self.total = None

    def line(self, text):
        super().line(text)
        if match := self.TOTAL.match(text):
            self.total = int(match[1])
        if match := self.NAME.match(text):
            self.current = f"{self.name}: {match[1]}"
        match = self.RESULT.search(text)
        if match and self.current and self.total is None:
            if match[1] == "ok":
                self.record(self.current, "passed")
            elif match[2] is not None:
                self.record(self.current, "skipped", match[2].strip("'\""))
                self.outcomes[self.current].asked_for = self.may_skip
            else:
                self.record(self.current, "failed", match[1].lower())
            self.current = None

    def done(self, status):
        for outcome in self.failed():
            outcome.output = self.text()
        if status != 0 and not self.failed():
            self.record(self.name, "failed", how_it_ended(status, self.limit_s), self.text())
        elif self.total != len(self.outcomes) or not self.outcomes:
            self.record(self.name, "failed",
                        f"{self.total} tests ran, {len(self.outcomes)} reported", self.text())
        return False


class Preparation(Job):
    """Makes something ready for other jobs, which fail themselves without it."""

    kind = "preparation"

    def done(self, status):
        if status != 0:
            self.notes.append(f"{self.name}: {how_it_ended(status, self.limit_s)}: {self.text()}")
        return False


class Build(Job):
    """Cargo builds every target; its messages tell where they are."""

    kind = "build"
    vital = True

    def __post_init__(self):
        super().__post_init__()
        # (PACKAGE/TARGET, executable, the package's folder)
        self.binaries: list[tuple[str, Path, Path]] = []

    def line(self, text):
        try:
            message = json.loads(text)
        except ValueError:
            return super().line(text)
        if message.get("reason") == "compiler-artifact" and message.get("executable") \
                and message["profile"]["test"]:
            target = message["target"]
            # path+file:///.../tests#syrup-tests@0.1.0, or #0.1.0 for a folder of that name
            folder, _, version = message["package_id"].partition("#")
            package = version.partition("@")[0] if "@" in version else Path(folder).name
            name = "lib" if "lib" in target["kind"] else target["name"]
            self.binaries.append((f"{package}/{name}", Path(message["executable"]),
                                  Path(message["manifest_path"]).parent))
        return None

    def done(self, status):
        # It is no test; only its failure counts.
        if status != 0:
            self.record(self.name, "failed", how_it_ended(status, self.limit_s), self.text())
        return False


@dataclass
class TestJob(Job):
    """Tests of libtest binaries, run by the agent."""

    # Where its plan is written.
    folder: Path = Path()
    tests: list[Test] = field(default_factory=list)
    test_limit_s: float = 0
    kind = "native"

    def __post_init__(self):
        super().__post_init__()
        self.by_id = {test.id: test for test in self.tests}
        self.running: tuple[str, float] | None = None
        self.complete = False
        # In this attempt: it decides the agent's exit status.
        self.any_failed = False
        self.release = ""

    def plan(self) -> Path:
        return self.folder / f"{self.name.replace('/', '-')}.json"

    def write_plan(self) -> None:
        """For the agent: the tests, by binary."""
        binaries: dict[Path, dict] = {}
        for test in self.tests:
            binary = binaries.setdefault(test.binary, {
                "path": str(test.binary), "folder": str(test.folder), "tests": []})
            binary["tests"].append({"id": test.id, "name": test.name})
        self.plan().write_text(json.dumps({
            "limit_s": self.test_limit_s, "tied": self.kind == "native",
            "binaries": list(binaries.values())}))

    def line(self, text):
        # The console of a guest may have left half a line before it.
        before, mark, event = text.partition(agent.MARK)
        if not mark:
            return super().line(text)
        if before.strip():
            super().line(before)
        try:
            event = json.loads(event)
        except ValueError:
            return super().line(text)
        self.event(event)

    def event(self, event):
        if "kernel" in event:
            self.release = event["kernel"]
        elif "begin" in event:
            # What the test costs here: time in a guest may be of another kind.
            self.running = event["begin"], time.monotonic()
        elif "end" in event:
            began = self.running[1] if self.running else time.monotonic()
            self.running = None
            self.any_failed |= event["status"] == "failed"
            if event["end"] in self.by_id:
                self.record(event["end"], event["status"], event["why"], event["output"],
                            time.monotonic() - began)
        elif "done" in event:
            self.complete = True

    def done(self, status):
        if self.complete and status == int(self.any_failed):
            self.fail_missing("was not run")
            return False
        why = self.how_it_ended(status)
        if self.running:
            self.record(self.running[0], "failed", f"running when its job ended: {why}",
                        self.text())
        if self.complete or not self.fail_missing(f"not run: its job ended before, {why}"):
            self.record(f"{self.name} (the job itself)", "failed", why, self.text())
        return False

    def how_it_ended(self, status):
        return how_it_ended(status, self.limit_s)

    def fail_missing(self, why) -> int:
        missing = [test for test in self.by_id if test not in self.outcomes]
        for test in missing:
            self.record(test, "failed", why, self.text())
        return len(missing)


@dataclass
class GuestJob(TestJob):
    """Tests in a virtual machine."""

    guest: str = ""
    allow_offline: bool = False
    kind = "guest"

    def __post_init__(self):
        super().__post_init__()
        self.attempts = 0
        # Its kernel could not be downloaded, which was allowed.
        self.offline = False

    def where(self):
        return self.guest

    def line(self, text):
        if text.startswith("vm: ") and VM_BOOTS_AGAIN in text:
            self.notes.append(f"{self.name}: {text.removeprefix('vm: ')}")
        super().line(text)

    def how_it_ended(self, status):
        return VM_STATUS.get(status) or super().how_it_ended(status)

    def done(self, status):
        self.attempts += 1
        if status == VM_EMULATOR_FAULT and self.attempts == 1:
            self.notes.append(f"{self.name}: run again, emulation broke the guest (vm/README.md)")
            failed = self.failed()
            self.outcomes = {outcome.id: outcome for outcome in failed}
            self.running, self.complete, self.any_failed = None, False, False
            return True
        if status == VM_NOT_OBTAINABLE and not self.outcomes and self.allow_offline:
            self.offline = True
            for test in self.by_id:
                self.record(test, "skipped", f"{VM_STATUS[status]} ({OFFLINE} is set)")
                self.outcomes[test].asked_for = True
            return False
        if status == VM_NOT_OBTAINABLE and not self.outcomes:
            self.log.append(f"Without a network, {OFFLINE}=1 lets these tests skip.")
        return super().done(status)


OFFLINE = "SYRUP_ALLOW_OFFLINE"


def guest_command(kernel: str, name: str, *, cpus: int, memory: str, icount: bool,
                  limit_s: float, plan: Path, vm_run: Path) -> list[str]:
    return [
        # A runner that is killed outright leaves no guest.
        "setpriv", "--pdeathsig", "TERM",
        str(vm_run), "--kernel", kernel, "--name", name, "--cpus", str(cpus), "--memory", memory,
        *(["--icount"] if icount else []), "--timeout", f"{limit_s:g}", "--",
        # The very interpreter: python3 may be a shim (pyenv), which takes ten seconds in
        # an emulated guest, as does Python's site, of which nothing is needed.
        sys.executable, "-I", "-S", str(ROOT / "tests/runner/agent.py"), str(plan),
    ]
