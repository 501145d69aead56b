"""What a guest's kernel said, judged as the maintainers of kselftest would.

Pure: from the records of /dev/kmsg, the console and the taint to a verdict.

A record carries its origin: only those of the kernel itself are judged, so a
program cannot fail a run by writing "WARNING:" to /dev/kmsg. What a program
writes there announces what a test is about to bring about:

    syrup-test: begin TEST     what runs from here on
    syrup-test: expect TEXT    the next complaint with TEXT is excused; it must come

Each announcement is good for one complaint, made after it and before the next test
begins."""

import re
from dataclasses import dataclass, field

START = "syrup-vm: the command starts"
END = "syrup-vm: the command ended"

_SAID = re.compile(r"syrup-test: (begin|expect) (.+)")

# What the kernel says when something is wrong with it. The first pattern that
# a line meets names the complaint.
_KINDS = (
    ("panic", re.compile(r"^Kernel panic")),
    ("soft lockup", re.compile(r"soft lockup")),
    ("hard lockup", re.compile(r"hard LOCKUP|Watchdog detected .*LOCKUP", re.I)),
    ("RCU stall", re.compile(
        r"^rcu: INFO: .*(self-detected stall|detected (expedited )?stalls?)"
        r"|^INFO: rcu.*(self-detected stall|detected stalls?)"
        r"|^rcu: .*kthread (timer wakeup didn't happen|starved)")),
    ("hung task", re.compile(r"^INFO: task .* blocked (for|in) .*more than")),
    # Of user space's faults the kernel says "traps: PROGRAM[PID] general ...".
    ("oops", re.compile(
        r"^(Oops\b|kernel BUG at|BUG: (kernel NULL pointer|unable to handle|stack guard)"
        r"|general protection fault\b|(double fault|stack segment|invalid opcode|int3|divide error)"
        r": |PANIC: |Unable to handle kernel|Internal error: )")),
    ("sanitizer", re.compile(r"\b(KASAN|KFENCE|KCSAN|KMSAN|UBSAN|kmemleak): ")),
    ("warning", re.compile(r"^WARNING: ")),
    ("bug", re.compile(r"^BUG: |^BUG \S+ \(|corruption\. |^INFO: (possible|inconsistent|trying to)")),
    # Loaders take their schedulers off again: that, and nothing else, is plain.
    ("ejected scheduler", re.compile(
        r"^sched_ext: BPF scheduler .* disabled \((?!unregistered from user space\))")),
)  # fmt: skip

# A report ends with its "end trace"; nothing that has one is longer.
_LONGEST = 200
_CUT_HERE = "------------[ cut here ]------------"
_END_TRACE = re.compile(r"---\[ end (trace|Kernel panic)")

# Documentation/admin-guide/tainted-kernels.rst. The others tell of modules, of
# firmware and of the user's own wishes.
_TAINTS = {4: "M", 5: "B", 7: "D", 9: "W", 14: "L"}
_TAINT_MEANS = {
    "M": "a machine check", "B": "a bad page", "D": "an oops or BUG", "W": "a warning",
    "L": "a soft lockup",
}  # fmt: skip
# The kinds of complaint that set a taint.
_TAINTED_BY = {
    "M": (), "B": ("bug",), "D": ("oops", "panic"), "W": ("warning", "sanitizer", "bug"),
    "L": ("soft lockup",),
}  # fmt: skip

# The dump of registers and stack tells little where only the head is read.
_SHOWN_LINES = 12


@dataclass(frozen=True)
class Message:
    """One record of the kernel's log."""

    sequence: int
    time_us: int
    facility: int
    text: str

    @property
    def from_kernel(self) -> bool:
        return self.facility == 0


@dataclass
class Complaint:
    kind: str
    lines: list[str]
    sequence: int = 0
    announced: bool = False
    # The test that ran, where somebody said so.
    during: str = ""

    def head(self) -> str:
        return next((line for line in self.lines if _kind(line)), self.lines[0])


@dataclass
class Verdict:
    complaints: list[Complaint] = field(default_factory=list)
    # What is wrong beside them, a sentence each.
    faults: list[str] = field(default_factory=list)

    def unannounced(self) -> list[Complaint]:
        return [complaint for complaint in self.complaints if not complaint.announced]

    def good(self) -> bool:
        return not self.unannounced() and not self.faults

    def lines(self) -> list[str]:
        """The verdict for people: what the kernel said and what that means."""
        shown = []
        for complaint in self.unannounced():
            shown.append(complaint.kind + (f", during {complaint.during}:" if complaint.during else ":"))
            shown += ["  " + line for line in complaint.lines[:_SHOWN_LINES]]
            if len(complaint.lines) > _SHOWN_LINES:
                shown.append(f"  ({len(complaint.lines) - _SHOWN_LINES} more lines)")
        return shown + self.faults


def parse(kmsg: str) -> list[Message]:
    """The records of /dev/kmsg (Documentation/ABI/testing/dev-kmsg), those of
    several lines as one message each."""
    messages = []
    for line in kmsg.split("\n"):
        head, semicolon, text = line.partition(";")
        fields = head.split(",")
        # What begins with a blank describes the device of the record before.
        if not semicolon or line.startswith(" ") or len(fields) < 3:
            continue
        try:
            priority, sequence, time_us = (int(number) for number in fields[:3])
        except ValueError:
            continue
        text = re.sub(r"\\x([0-9a-f]{2})", lambda code: chr(int(code[1], 16)), text)
        for part in text.split("\n"):
            messages.append(Message(sequence, time_us, priority >> 3, part))
    return messages


def parse_console(console: str) -> list[str]:
    """The lines of the console without their times."""
    return [re.sub(r"^\[ *\d+\.\d+\]( *\[ *[TC]\d+\])? ?", "", line.rstrip("\r"))
            for line in console.split("\n")]  # fmt: skip


def dmesg(messages: list[Message]) -> str:
    """As dmesg(1) would show them."""
    return "".join(
        f"[{m.time_us // 1_000_000:5}.{m.time_us % 1_000_000:06}] {m.text}\n" for m in messages
    )


def judge(messages: list[Message], taint: int | None, console: str = "", ended: bool = True) -> Verdict:
    """`taint` is /proc/sys/kernel/tainted after the command, None when it could
    not be read any more. `ended` says that the command came to its end: only
    then must that be there, the log be complete and each promise kept."""
    verdict = Verdict()
    kernel = [m for m in messages if m.from_kernel]
    verdict.complaints = [
        Complaint(kind, [kernel[n].text for n in numbers], kernel[numbers[0]].sequence)
        for kind, numbers in _reports([m.text for m in kernel])
    ]
    _place_and_excuse(verdict, messages, ended)

    # The last words of a guest that died reach only the console.
    said = parse_console(console)
    known = {complaint.head() for complaint in verdict.complaints}
    for kind, numbers in _reports(said):
        complaint = Complaint(kind, [said[n] for n in numbers])
        if complaint.head() not in known:
            known.add(complaint.head())
            verdict.complaints.append(complaint)

    if taint is not None:
        _judge_taint(verdict, taint)
    elif ended:
        verdict.faults.append("whether the kernel is tainted was not recorded")
    if ended:
        _judge_completeness(verdict, messages)
    return verdict


def _kind(line: str) -> str | None:
    return next((kind for kind, pattern in _KINDS if pattern.search(line)), None)


def _reports(lines: list[str]) -> list[tuple[str, list[int]]]:
    """The kind and the lines of each report. What another CPU says meanwhile
    stands inside one, and is a report of its own."""
    spans = list(_spans(lines))
    return [
        (kind, [n for n in range(first, last) if not any(f <= n < l for _, f, l in spans[at + 1 :])])
        for at, (kind, first, last) in enumerate(spans)
    ]


def _spans(lines: list[str]):
    """Yields (kind, first, last + 1) of each report: its head, and what belongs
    to it from "cut here" to "end trace"."""
    position = end = 0
    while position < len(lines):
        kind = _kind(lines[position])
        if kind is None:
            position += 1
            continue
        first = position
        for before in range(position - 1, max(position - 6, end - 1), -1):
            if _kind(lines[before]) or _END_TRACE.search(lines[before]):
                break
            if lines[before] == _CUT_HERE:
                first = before
                break
        if first < position:
            kind, position = _named(lines, kind, position)
        # An oops ends the guest, whatever is said beside it.
        fatal = kind in ("oops", "panic")
        end = _end(lines, position, traced=first < position or fatal)
        yield kind, first, end
        position = end if fatal else position + 1


def _named(lines: list[str], kind: str, at: int) -> tuple[str, int]:
    """A warning's or an oops's own words come first, and may be a pattern's too:
    its kind, and its line."""
    for after in range(at, min(at + 5, len(lines))):
        if lines[after] == _CUT_HERE:
            break
        if _kind(lines[after]) in ("warning", "oops"):
            return _kind(lines[after]), after
    return kind, at


def _end(lines: list[str], head: int, traced: bool) -> int:
    if traced:
        for after in range(head + 1, min(head + _LONGEST, len(lines))):
            if _END_TRACE.search(lines[after]):
                return after + 1
            if lines[after] == _CUT_HERE:
                return after
    # Without a trace: the lines that are indented, or continue the scheduler's story.
    last = head + 1
    while last < len(lines) and not _kind(lines[last]) and (
        lines[last].startswith(" ") or lines[head].startswith("sched_ext: ")
        and lines[last].startswith("sched_ext: ") and "enabled" not in lines[last]
    ):  # fmt: skip
        last += 1
    return last


def _place_and_excuse(verdict: Verdict, messages: list[Message], ended: bool) -> None:
    """Notes which test each complaint came in, and which of them were announced."""
    said = [
        (m.sequence, *found.groups())
        for m in messages
        if not m.from_kernel and (found := _SAID.search(m.text))
    ]
    during = ""
    for number, (sequence, what, text) in enumerate(said):
        if what == "begin":
            during = text
            for complaint in verdict.complaints:
                if complaint.sequence > sequence:
                    complaint.during = during
            continue
        until = next(
            (at for at, what, test in said[number:] if what == "begin" and not _same(test, during)),
            float("inf"),
        )
        for complaint in verdict.complaints:
            if (
                not complaint.announced
                and sequence < complaint.sequence < until
                and any(text.strip() in line for line in complaint.lines)
            ):
                complaint.announced = True
                break
        else:
            if ended:
                verdict.faults.append(
                    f"a test announced a message of the kernel with {text.strip()!r}, and none came"
                    + (f" during {during}" if during else "")
                )


def _same(test: str, other: str) -> bool:
    """Two say that a test begins: who runs it, with its whole name, and the test
    itself, which may come first and does not know its package."""
    return test == other or test.endswith(f"::{other}") or other.endswith(f"::{test}")


def _judge_taint(verdict: Verdict, taint: int) -> None:
    for bit, letter in _TAINTS.items():
        if not taint >> bit & 1:
            continue
        causes = [c for c in verdict.complaints if c.kind in _TAINTED_BY[letter]]
        # With a complaint that nobody announced, the taint is no news.
        if not causes:
            verdict.faults.append(
                f"the kernel is tainted {letter} ({_TAINT_MEANS[letter]}), and its log does not say why"
            )


def _judge_completeness(verdict: Verdict, messages: list[Message]) -> None:
    if not any(m.text == END for m in messages):
        verdict.faults.append("the kernel's log was not recorded to its end")
    lost = sum(
        max(0, later.sequence - earlier.sequence - 1)
        for earlier, later in zip(messages, messages[1:])
    )
    if lost:
        verdict.faults.append(f"{lost} messages of the kernel were lost before they were recorded")
