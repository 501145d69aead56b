#!/usr/bin/env python3
"""Runs tests of libtest binaries, natively or in a guest, one after another. One
that hangs or crashes is known by its name, and the next ones run in a new process.

usage: agent.py PLAN

PLAN is a JSON file: {"limit_s": N, "binaries": [{"path": ..., "folder": ...,
"tests": [{"id": ..., "name": ...}]}]}. On standard output each test is announced,
`@test {"begin": ID}`, and reported, `@test {"end": ID, "status": ..., "why": ...,
"output": ...}`; `@test {"done": true}` is the last line. The exit status is 1 if
a test failed.
"""

import codecs
import ctypes
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

MARK = "@test "
# Of a test's output: more would be read by nobody.
KEPT_CHARACTERS = 1 << 16
BEGINS = re.compile(r"^test (\S+) \.\.\. ", re.MULTILINE)
VERDICT = re.compile(r"(ok|FAILED)\s*\Z")
# What follows the last test, with the names of those that failed.
SUMMARY = re.compile(
    r"(?:\n\nfailures:\n\nfailures:\n(?:    \S+\n)+)?\n?\n"
    r"test result: \w+\. (\d+) passed; (\d+) failed; .*\s*\Z")

MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def prctl(option, value):
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


failures = []


def say(**event):
    if event.get("status") == "failed":
        failures.append(event["end"])
    print(MARK + json.dumps(event), flush=True)


def stat(pid):
    """(name, state, parent, group) of a process, or None."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            name, _, rest = file.read().rpartition(") ")
    except OSError:
        return None
    state, parent, group = rest.split()[:3]
    return name.partition("(")[2], state, int(parent), int(group)


def descendants():
    """Processes that a test started: whoever lost its parent is now our child."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := stat(entry)):
            parents.setdefault(found[2], []).append((int(entry), found[0], found[1]))
    found, at = [], [os.getpid()]
    while at:
        for child in parents.get(at.pop(), []):
            found.append(child)
            at.append(child[0])
    return found


def alone():
    """Reaps; true when nothing that a test started is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def left_behind(limit_s):
    """Processes that outlive their test by more than their own dying takes."""
    deadline = time.monotonic() + limit_s
    while not alone():
        if time.monotonic() > deadline:
            return [f"{name} ({pid}, state {state})" for pid, name, state in descendants()]
        time.sleep(0.01)
    return []


def end_all(limit_s=10):
    """Kills what the test started; names what cannot be killed."""
    deadline = time.monotonic() + limit_s
    while not alone() and time.monotonic() < deadline:
        for pid, _, _ in descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.01)
    return left_behind(0)


class Temporary:
    """The folder for what tests put into files, as TMPDIR. It goes with the agent,
    whatever they leave in it."""

    def __init__(self):
        # Paths of sockets must be short.
        self.path = tempfile.mkdtemp(prefix="syrup-tests-")
        # As /tmp itself is: tests have ordinary users run programs in there.
        os.chmod(self.path, 0o1777)
        os.environ["TMPDIR"] = self.path

    def left_behind(self):
        """What is in it; then nothing is."""
        left = sorted(os.listdir(self.path))
        for name in left:
            self.remove(os.path.join(self.path, name))
        return left

    def close(self):
        self.remove(self.path)

    def remove(self, path):
        # A file system that a test mounted there is not what is to be removed.
        with open("/proc/self/mounts", "rb") as mounts:
            places = [unescaped(line.split()[1]) for line in mounts]
        for place in reversed(places):
            below = place == path.encode() or place.startswith(path.encode() + b"/")
            if below and ctypes.CDLL(None).umount2(place, MNT_DETACH) != 0:
                return
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def unescaped(place):
    """As /proc/self/mounts writes it: a space is \\040."""
    return re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), place)


def where_it_hangs(pid):
    """Each thread's name, state and place in the kernel, for whoever mends it."""
    lines = []
    for process, name, _ in descendants():
        try:
            threads = sorted(os.listdir(f"/proc/{process}/task"), key=int)
        except OSError:
            continue
        lines.append(f"process {process} {name}{' (the test)' if process == pid else ''}:")
        for thread in threads:
            found = stat(f"{process}/task/{thread}")
            try:
                with open(f"/proc/{process}/task/{thread}/wchan", encoding="ascii") as file:
                    place = file.read().strip("0\n")
            except OSError:
                place = ""
            if found:
                lines.append(f"  thread {thread} {found[0]}: state {found[1]} {place}".rstrip())
    return "\n".join(lines)


def announce(test):
    """Between the lines of a guest's kernel, so that a complaint has an owner."""
    if "SYRUP_VM" in os.environ:
        try:
            with open("/dev/kmsg", "w", encoding="ascii") as file:
                file.write(f"syrup-test: begin {test}\n")
        except OSError:
            pass


class Skips:
    """What tests note when they skip: lines `NAME: needs WHAT` in a file."""

    def __init__(self):
        self.file = tempfile.NamedTemporaryFile("r", prefix="syrup-skips-")
        # Tests may run as another user.
        os.chmod(self.file.name, 0o666)

    def of(self, name):
        """Why the test that has just ended skipped, or nothing."""
        why = ""
        for line in self.file:
            who, _, what = line.strip().partition(": ")
            # A thread of the test has another name than the test.
            if who == name or not why:
                why = what or line.strip()
        return why


class Process:
    """One process of a test binary, which runs tests in the order given to it.
    Its output tells which one runs: libtest prints `test NAME ... ` before it and
    the verdict after it."""

    def __init__(self, binary, tests, limit_s, skips, temporary):
        self.tests = {test["name"]: test for test in tests}
        self.limit_s = limit_s
        self.skips = skips
        self.temporary = temporary
        self.ended = []
        self.failed = 0
        self.current = None
        self.text = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.child = subprocess.Popen(
            [binary["path"], "--exact", "--nocapture", "--test-threads=1", *self.tests],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=binary["folder"], start_new_session=True,
            env={**os.environ, "SYRUP_TEST_SKIPS": skips.file.name,
                 "CARGO_MANIFEST_DIR": binary["folder"]})
        os.set_blocking(self.child.stdout.fileno(), False)

    def run(self):
        """Names of the tests that it dealt with."""
        self.deadline = time.monotonic() + self.limit_s
        output = self.child.stdout.fileno()
        pidfd = os.pidfd_open(self.child.pid)
        watched = [output, pidfd]
        try:
            while True:
                left_s = self.deadline - time.monotonic()
                ready, _, _ = select.select(watched, [], [], max(0, left_s))
                if not self.read(output):
                    watched = [pidfd]
                if pidfd in ready:
                    self.read(output)
                    self.finish(self.child.wait())
                    break
                if not ready and left_s <= 0:
                    self.hangs()
                    break
        finally:
            os.close(pidfd)
            self.child.stdout.close()
        return self.ended

    def read(self, output):
        """Takes what there is; false at its end. Whoever inherited the pipe may
        keep it open: the process's own end counts, not the pipe's."""
        while True:
            try:
                data = os.read(output, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.text += self.decoder.decode(data)
            self.parse()
            self.text = self.text[-KEPT_CHARACTERS:]

    def parse(self):
        at = 0
        while match := BEGINS.search(self.text, at):
            name = match[1]
            # A test may run a test binary of its own, and print what it prints.
            if name not in self.tests or name in self.ended or name == self.current:
                at = match.end()
                continue
            before, self.text, at = self.text[:match.start()], self.text[match.end():], 0
            if self.current:
                self.judge(before)
            self.current = name
            self.deadline = time.monotonic() + self.limit_s
            announce(self.tests[name]["id"])
            say(begin=self.tests[name]["id"])

    def judge(self, output, last=0):
        """The test that ran has ended, and its verdict is the last word. That of a
        child that outlives it can come behind it: behind the last test, `last` is
        how many failed as the binary says."""
        verdict = VERDICT.search(output)
        skipped = self.skips.of(self.current)
        if not verdict:
            self.end("failed", "its verdict is lost in its output", output)
        elif verdict[1] == "FAILED":
            self.end("failed", "failed", output)
        elif last > self.failed:
            self.end("failed", f"this test or one before it in its binary failed: it says {last}",
                     output)
        elif skipped:
            self.end("skipped", skipped, output)
        else:
            self.end("passed", "", output)

    def end(self, status, why, output):
        say(end=self.tests[self.current]["id"], status=status, why=why,
            output=output if status == "failed" else "")
        self.failed += status == "failed"
        self.ended.append(self.current)
        self.current = None

    def finish(self, status):
        """The process has ended: after its last test, or in one."""
        # The last words may be those of a child, so they must count our tests.
        summary = SUMMARY.search(self.text)
        if summary and (status != (101 if int(summary[2]) else 0)
                        or int(summary[1]) + int(summary[2]) != len(self.tests)):
            summary = None
        what, left = "processes", left_behind(2)
        end_all()
        files = self.temporary.left_behind()
        if files and not left:
            what, left = "files in its temporary folder", files
        if self.current and summary and not (left and status == 0):
            self.judge(self.text[:summary.start()], last=int(summary[2]))
        elif self.current and summary:
            self.end("failed", f"this test or one before it in its binary left {what} "
                     f"behind: {', '.join(left)}", self.text)
        elif self.current:
            self.end("failed", how_it_ended(status), self.text)
        if len(self.ended) < len(self.tests) and (summary or not self.ended):
            # Of no use to start it again.
            why = f"the test binary did not run it, {how_it_ended(status)}"
            for name in self.tests:
                if name not in self.ended:
                    self.current = name
                    self.end("failed", why, self.text)

    def hangs(self):
        why = f"hangs: it did not end within {self.limit_s:g} s"
        where = where_it_hangs(self.child.pid)
        if stuck := end_all():
            why += f"; cannot be killed: {', '.join(stuck)}"
        self.temporary.left_behind()
        self.read(self.child.stdout.fileno())
        if self.current is None:
            # Before its first test: the first one stands for it.
            self.current = next(iter(self.tests))
        self.end("failed", why, f"{where}\n{self.text}")


def how_it_ended(status):
    if status < 0:
        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"killed by signal {-status}"
    return f"ended without a result, with exit status {status}"


def main(path):
    with open(path, encoding="utf-8") as file:
        plan = json.load(file)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    if plan.get("tied"):
        # Who started us may be killed outright: a test must not stay.
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    say(kernel=os.uname().release)
    with tempfile.TemporaryDirectory(prefix="syrup-agent-") as programs:
        # The tests' python3 is this one, not a shim that starts it: see jobs.py.
        os.chmod(programs, 0o755)
        os.symlink(sys.executable, os.path.join(programs, "python3"))
        os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
        skips = Skips()
        temporary = Temporary()
        try:
            for binary in plan["binaries"]:
                waiting = binary["tests"]
                while waiting:
                    ended = Process(binary, waiting, plan["limit_s"], skips, temporary).run()
                    waiting = [test for test in waiting if test["name"] not in ended]
        finally:
            # What still runs would fill it again.
            end_all()
            temporary.close()
    say(done=True)
    return 1 if failures else 0


def terminated(number, _frame):
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminated)
    signal.signal(signal.SIGINT, terminated)
    try:
        sys.exit(main(sys.argv[1]))
    finally:
        # Also when stopped in the middle of a test.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_all()
