"""What fails a guest, and what does not."""

import unittest

from syrup_vm import judge

KERNEL, USER = 0, 1

# As kernels said it; where they differ, 7.0's and 7.2's.
WARNING = """\
------------[ cut here ]------------
refcount_t: underflow; use-after-free.
WARNING: lib/refcount.c:28 at refcount_warn_saturate+0xba/0x110, CPU#1: insmod/321
Modules linked in: broken(OE+) overlay
CPU: 1 UID: 0 PID: 321 Comm: insmod Tainted: G           OE       7.2.13+deb14-cloud-amd64 #1
RIP: 0010:refcount_warn_saturate+0xba/0x110
Call Trace:
 <TASK>
 do_one_initcall+0x5b/0x300
 </TASK>
---[ end trace 0000000000000000 ]---"""
OOPS = """\
BUG: kernel NULL pointer dereference, address: 0000000000000008
#PF: supervisor read access in kernel mode
Oops: Oops: 0000 [#1] SMP NOPTI
CPU: 0 UID: 0 PID: 12 Comm: x Not tainted 7.2.13+deb14-cloud-amd64 #1
RIP: 0010:scx_tick+0x1/0x2
---[ end trace 0000000000000000 ]---"""
EJECTION = """\
sched_ext: BPF scheduler "syrup" disabled (runnable task stall)
sched_ext: syrup: spin[270] failed to run for 11.492s
   scx_watchdog_workfn+0x1/0x2"""
ENABLED = 'sched_ext: BPF scheduler "syrup" enabled'
UNLOADED = 'sched_ext: BPF scheduler "syrup" disabled (unregistered from user space)'


def log(*texts):
    """Messages from texts of the kernel, and of programs as (USER, text)."""
    messages = []
    for number, text in enumerate([*texts, (USER, judge.END)]):
        facility, text = (KERNEL, text) if isinstance(text, str) else text
        for line in text.split("\n"):
            messages.append(judge.Message(number, number * 1000, facility, line))
    return messages


def said(text):
    return (USER, f"syrup-test: {text}")


class Complaints(unittest.TestCase):
    def kinds(self, *texts, taint=0):
        verdict = judge.judge(log(*texts), taint)
        self.assertEqual(verdict.good(), not verdict.complaints and not verdict.faults)
        return [complaint.kind for complaint in verdict.complaints]

    def test_of_each_kind_are_found(self):
        for text, kind in {
            WARNING: "warning",
            OOPS: "oops",
            EJECTION: "ejected scheduler",
            'sched_ext: BPF scheduler "x" disabled (unregistered from the main kernel)':
                "ejected scheduler",
            "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [a:1]": "soft lockup",
            "watchdog: CPU2: Watchdog detected hard LOCKUP on cpu 2": "hard lockup",
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:": "RCU stall",
            "rcu: INFO: rcu_preempt self-detected stall on CPU": "RCU stall",
            "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-.... }": "RCU stall",
            "rcu: rcu_preempt kthread starved for 5250 jiffies! g-1151 f0x0": "RCU stall",
            "INFO: task kworker/0:1:9 blocked for more than 120 seconds.": "hung task",
            "BUG: scheduling while atomic: a/12/0x00000002": "bug",
            "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!": "bug",
            "BUG: Bad page state in process a  pfn:12345": "bug",
            "BUG kmalloc-64 (Not tainted): Poison overwritten": "bug",
            "list_del corruption. prev->next should be ffff, but was 0": "bug",
            "BUG: KASAN: slab-use-after-free in scx_x+0x1/0x2": "sanitizer",
            "UBSAN: array-index-out-of-bounds in kernel/sched/ext.c:1:2": "sanitizer",
            "WARNING: possible circular locking dependency detected": "warning",
            "WARNING: CPU: 0 PID: 1 at kernel/sched/ext.c:1 scx_x+0x1/0x2": "warning",
            "Oops: general protection fault, probably for non-canonical address 0x1: 0000 [#1]": "oops",
            "Kernel panic - not syncing: sysrq triggered crash": "panic",
        }.items():  # fmt: skip
            with self.subTest(text=text):
                self.assertEqual(self.kinds("before", text, "after"), [kind])

    def test_are_not_made_of_plain_talk(self):
        self.assertEqual(
            self.kinds(
                ENABLED, UNLOADED,
                "sched_ext: ops->cpu_acquire/release() are deprecated, use sched_switch TP instead",
                "traps: app[12] general protection fault ip:40 sp:7f error:0 in app[40+1]",
                "app[12]: segfault at 8 ip 0 sp 0 error 4 in app[40+1]",
                "hpet: Lost 1 RTC interrupts",
                "workqueue: scx_x hogged CPU for >10000us 4 times",
                "clocksource: Marking TSC unstable due to clocksource watchdog",
                "sysrq: Show Blocked State",
                "Call Trace:",
            ),
            [],
        )  # fmt: skip

    def test_are_the_kernels_own(self):
        self.assertEqual(self.kinds((USER, OOPS), (USER, WARNING)), [])

    def test_are_reports_with_all_their_lines_each_counted_once(self):
        verdict = judge.judge(log("a", WARNING, "b", OOPS, EJECTION, ENABLED), 1 << 7 | 1 << 9)
        self.assertEqual(
            ["\n".join(complaint.lines) for complaint in verdict.complaints],
            [WARNING, OOPS, EJECTION],
        )

    def test_one_does_not_hide_the_next(self):
        # Without an end trace of its own.
        torn = WARNING.rsplit("\n", 1)[0]
        self.assertEqual(self.kinds(torn, WARNING, taint=1 << 9), ["warning", "warning"])

    def test_inside_the_report_of_another_count_too(self):
        head, rest = WARNING.split("\nCall Trace:")
        stall = "rcu: INFO: rcu_preempt self-detected stall on CPU"
        torn = f"{head}\n{EJECTION}\n{stall}\nCall Trace:{rest}"
        verdict = judge.judge(log(said("expect underflow"), torn), 1 << 9)
        self.assertEqual([c.kind for c in verdict.complaints],
                         ["warning", "ejected scheduler", "RCU stall"])  # fmt: skip
        self.assertEqual([c.announced for c in verdict.complaints], [True, False, False])
        self.assertEqual("\n".join(verdict.complaints[0].lines), WARNING)
        # Nor does an announcement of the inner one excuse the outer.
        verdict = judge.judge(log(said("expect runnable task stall"), torn), 1 << 9)
        self.assertEqual([c.announced for c in verdict.complaints], [False, True, False])
        # Not what an oops says of itself.
        self.assertEqual(self.kinds(OOPS.replace("\nRIP", "\nOops: again\nRIP"), taint=1 << 7), ["oops"])

    def test_named_by_their_own_words_are_one(self):
        said = "list_del corruption. prev->next should be ffff, but was 0"
        cause = WARNING.replace("refcount_t: underflow; use-after-free.", said)
        self.assertEqual(self.kinds("a", cause, taint=1 << 9), ["warning"])

    def test_are_printed_with_their_head(self):
        lines = judge.judge(log("a", WARNING), 1 << 9).lines()
        self.assertIn("  WARNING: lib/refcount.c:28 at refcount_warn_saturate+0xba/0x110, "
                      "CPU#1: insmod/321", lines)  # fmt: skip

    def test_are_laid_at_the_door_of_the_test_that_ran(self):
        verdict = judge.judge(
            log(OOPS, said("begin a::b"), EJECTION, said("begin c"), "fine", WARNING, said("begin d")),
            1 << 7 | 1 << 9,
        )
        self.assertEqual([complaint.during for complaint in verdict.complaints], ["", "a::b", "c"])
        self.assertIn("ejected scheduler, during a::b:", verdict.lines())


class Announcements(unittest.TestCase):
    def verdict(self, *texts, taint=0, **more):
        return judge.judge(log(*texts), taint, **more)

    def test_excuse_the_complaint_and_its_taint(self):
        for text in ("underflow", "refcount_warn_saturate+0xba"):
            self.assertTrue(self.verdict(said(f"expect {text}"), WARNING, taint=1 << 9).good())
        self.assertTrue(self.verdict(said("expect runnable task stall"), EJECTION).good())

    def test_excuse_one_complaint_each(self):
        expect = said("expect underflow")
        twice = self.verdict(expect, WARNING, WARNING, taint=1 << 9)
        self.assertEqual(len(twice.unannounced()), 1)
        self.assertTrue(self.verdict(expect, expect, WARNING, WARNING, taint=1 << 9).good())

    def test_come_before_what_they_excuse(self):
        verdict = self.verdict(WARNING, said("expect underflow"), taint=1 << 9)
        self.assertEqual(len(verdict.unannounced()), 1)
        self.assertEqual(len(verdict.faults), 1)

    def test_excuse_nothing_else(self):
        verdict = self.verdict(said("expect underflow"), EJECTION)
        self.assertEqual([c.kind for c in verdict.unannounced()], ["ejected scheduler"])

    def test_are_a_programs(self):
        self.assertFalse(self.verdict("syrup-test: expect underflow", WARNING, taint=1 << 9).good())

    def test_that_nothing_follows_fail(self):
        unkept = self.verdict(said("begin a"), said("expect underflow"), said("begin b"))
        self.assertIn("'underflow', and none came during a", " ".join(unkept.lines()))

    def test_end_with_their_test(self):
        verdict = self.verdict(
            said("begin a"), said("expect underflow"), said("begin b"), WARNING, taint=1 << 9
        )
        self.assertEqual((len(verdict.unannounced()), len(verdict.faults)), (1, 1))

    def test_may_come_before_the_runner_says_that_their_test_runs(self):
        early = [said("begin p/t::x"), said("begin m::a"), said("expect underflow"), said("begin p/t::m::a")]
        self.assertTrue(self.verdict(*early, WARNING, taint=1 << 9).good())
        self.assertFalse(self.verdict(*early, said("begin p/t::m::b"), WARNING, taint=1 << 9).good())

    def test_of_a_command_that_was_stopped_may_be_unkept(self):
        self.assertTrue(self.verdict(said("expect underflow"), taint=None, ended=False).good())


class Taint(unittest.TestCase):
    def test_without_a_reason_in_the_log_fails(self):
        for bit in (4, 5, 7, 9, 14):
            with self.subTest(bit=bit):
                self.assertEqual(len(judge.judge(log("fine"), 1 << bit).faults), 1)

    def test_that_is_not_known_fails(self):
        self.assertEqual(len(judge.judge(log("fine"), None).faults), 1)
        self.assertTrue(judge.judge(log("fine"), None, ended=False).good())

    def test_by_modules_and_firmware_is_none_of_our_business(self):
        harmless = sum(1 << bit for bit in (0, 1, 2, 3, 6, 8, 10, 11, 12, 13, 15, 16, 17, 18))
        self.assertTrue(judge.judge(log("fine"), harmless).good())


class Log(unittest.TestCase):
    RECORDS = (
        "6,1,100,-;Linux version 7.2\n"
        "4,2,1500000,c,caller=T1;WARNING: a\\x0asecond line \\xc3\n"
        " SUBSYSTEM=pci\n"
        "12,3,1500001,-;WARNING: by a program\n"
        "not a record\n"
    )

    def test_is_read_with_origin_and_lines(self):
        messages = judge.parse(self.RECORDS)
        self.assertEqual(
            [(m.sequence, m.from_kernel, m.text) for m in messages],
            [
                (1, True, "Linux version 7.2"), (2, True, "WARNING: a"),
                (2, True, "second line \xc3"), (3, False, "WARNING: by a program"),
            ],
        )  # fmt: skip
        self.assertIn("[    1.500000] second line \xc3\n", judge.dmesg(messages))

    def test_with_gaps_or_without_end_fails(self):
        whole = log("a", "b")
        self.assertTrue(judge.judge(whole, 0).good())
        self.assertFalse(judge.judge(whole[:1] + whole[2:], 0).good())
        self.assertFalse(judge.judge(whole[:-1], 0).good())
        self.assertFalse(judge.judge([], 0).good())

    def test_is_completed_by_the_console(self):
        console = "[   12.3] Kernel panic - not syncing: Fatal exception\r\n"
        verdict = judge.judge(log("a"), None, console + console, ended=False)
        self.assertEqual([c.kind for c in verdict.complaints], ["panic"])
        self.assertEqual(verdict.complaints[0].head(), "Kernel panic - not syncing: Fatal exception")

    def test_counts_once_what_the_console_repeats(self):
        console = "".join(f"[    1.0][  T12] {line}\r\n" for line in OOPS.split("\n"))
        verdict = judge.judge(log("a", OOPS), None, console, ended=False)
        self.assertEqual([c.kind for c in verdict.complaints], ["oops"])
