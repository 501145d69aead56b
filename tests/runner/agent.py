#!/usr/bin/env python3
"""Runs tests of libtest binaries, natively or in a guest: one at a time, each in
a process of its own, so that one that hangs or crashes is known by its name and
the next ones run.

usage: agent.py PLAN

PLAN is a JSON file: {"limit_s": N, "binaries": [{"path": ..., "folder": ...,
"tests": [{"id": ..., "name": ...}]}]}. On standard output each test is announced,
`@test {"begin": ID}`, and reported, `@test {"end": ID, "status": ..., "why": ...,
"output": ...}`; `@test {"done": true}` is the last line. The exit status is 1 if
a test failed.
"""

import ctypes
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

MARK = "@test "
# Of a test's output: more would be read by nobody.
KEPT_BYTES = 1 << 16
PASSED = re.compile(r"test result: ok\. 1 passed; 0 failed; 0 ignored;.*\s*\Z")

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def prctl(option, value):
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def say(**event):
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


def wait(child, limit_s):
    """The exit status, at once, where Popen.wait(limit) looks every 50 ms."""
    pidfd = os.pidfd_open(child.pid)
    try:
        ended, _, _ = select.select([pidfd], [], [], limit_s)
    finally:
        os.close(pidfd)
    return child.wait() if ended else None


def run(binary, test, limit_s, skips):
    """(status, why, output) of one test."""
    skips.truncate(0)
    # A file, not a pipe: who inherits it cannot keep us from reading it.
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            [binary["path"], test["name"], "--exact", "--nocapture", "--test-threads=1"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            cwd=binary["folder"], start_new_session=True,
            env={**os.environ, "SYRUP_TEST_SKIPS": skips.name,
                 "CARGO_MANIFEST_DIR": binary["folder"]})
        why, note = "", ""
        status = wait(child, limit_s)
        if status is None:
            why = f"hangs: it did not end within {limit_s:g} s"
            note = where_it_hangs(child.pid)
        elif left := left_behind(2):
            why = f"left processes behind: {', '.join(left)}"
        if stuck := end_all():
            why += f"; cannot be killed: {', '.join(stuck)}"
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - KEPT_BYTES))
        text = output.read().decode("utf-8", "replace")
    skips.seek(0)
    skipped = skips.read().strip()
    if status is not None and status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        why = f"killed by {name}"
    elif status:
        # libtest's own exit status for a failed test.
        why = why or ("failed" if status == 101 else f"exit status {status}")
    elif status == 0 and not PASSED.search(text):
        why = "ended without a result, with exit status 0"
    if why:
        return "failed", why, (note and note + "\n") + text
    if skipped:
        return "skipped", skipped.splitlines()[0].partition(": ")[2] or skipped, text
    return "passed", "", text


def main(path):
    with open(path, encoding="utf-8") as file:
        plan = json.load(file)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    if plan.get("tied"):
        # Who started us may be killed outright: a test must not stay.
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    say(kernel=os.uname().release)
    failed = False
    with (tempfile.TemporaryDirectory(prefix="syrup-agent-") as programs,
          tempfile.NamedTemporaryFile("r+", prefix="syrup-skips-") as skips):
        # The tests' python3 is this one, not a shim that starts it: see jobs.py.
        os.chmod(programs, 0o755)
        os.symlink(sys.executable, os.path.join(programs, "python3"))
        os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
        # Tests may run as another user.
        os.chmod(skips.name, 0o666)
        for binary in plan["binaries"]:
            for test in binary["tests"]:
                announce(test["id"])
                say(begin=test["id"])
                started = time.monotonic()
                status, why, output = run(binary, test, plan["limit_s"], skips)
                failed |= status == "failed"
                say(end=test["id"], status=status, why=why,
                    seconds=round(time.monotonic() - started, 3),
                    output=output if status == "failed" else "")
    say(done=True)
    return 1 if failed else 0


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
