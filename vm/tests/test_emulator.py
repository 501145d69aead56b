"""Which death of a guest is excused."""

import json
import unittest

from syrup_vm import emulator


def panic(oops="int3", byte="e9", place="sched_tick+0xba/0x230", number=1, taint="Not tainted", before=""):
    return before + (
        f"[  1.0] Oops: {oops}: 0000 [#{number}] SMP NOPTI\n"
        f"[  1.0] CPU: 0 UID: 0 PID: 208 Comm: dmesg {taint} 7.2.13+deb14-cloud-amd64 #1 PREEMPT(lazy)\n"
        f"[  1.0] RIP: 0010:{place}\n"
        f"[  1.0] Code: 31 d2 48 e8 27 d4 03 00 {byte} <81> 00 00 00 4c 89\n"
        "[  1.0] RIP: 0033:0x7f1fe5ed3829\n"
        "[  1.0] Code: 0f 05 <48> 3d 01 f0\n"
    )


class StaleCode(unittest.TestCase):
    def test_is_a_breakpoint_that_memory_does_not_hold_where_it_was_seen(self):
        self.assertEqual(emulator.stale_code(panic()), "sched_tick+0xba")
        elsewhere = panic(place="pick_task_fair+0x11c/0x7b0")
        self.assertEqual(emulator.stale_code(elsewhere), "pick_task_fair+0x11c")
        for harmless in ("Tainted: G            E      ", "Tainted: P           OE      "):
            self.assertEqual(emulator.stale_code(panic(taint=harmless)), "sched_tick+0xba")

    def test_is_nothing_else(self):
        for what, console in {
            "a breakpoint": panic(byte="cc"),
            "another trap": panic(oops="invalid opcode"),
            "another place": panic(place="scx_tick+0x1/0x2"),
            "a second oops": panic(number=2),
            "after an oops": panic(before="[  0.9] Oops: 0002 [#1] SMP\n"),
            "after a warning": panic(before="[  0.9] WARNING: kernel/sched/ext.c:1 at x\n"),
            "of a tainted kernel": panic(taint="Tainted: G        W          "),
            "of a kernel that had died": panic(taint="Tainted: G      D            "),
            "a panic": "Kernel panic - not syncing: sysrq triggered crash",
            "silence": "",
        }.items():
            with self.subTest(what):
                self.assertIsNone(emulator.stale_code(console))


class Faults(unittest.TestCase):
    def test_are_counted_within_a_day(self):
        now = 1_000_000
        ages = (0, 3600, emulator.WITHIN_S, emulator.WITHIN_S + 1)
        log = "".join(json.dumps({"time": now - age}) + "\n" for age in ages)
        self.assertEqual(emulator.recent(log, now), 3)
        log += json.dumps({"time": now, "counted": False}) + "\n"
        self.assertEqual(emulator.recent(log, now), 3)
