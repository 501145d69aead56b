"""Which death of a guest is excused."""

import json
import unittest

from syrup_vm import emulator


def panic(
    oops="int3", code="e9 <81> 00 00 00", place="sched_tick+0xba/0x230", number=1, taint="Not tainted", before=""
):
    return before + (
        f"[  1.0] Oops: {oops}: 0000 [#{number}] SMP NOPTI\n"
        f"[  1.0] CPU: 0 UID: 0 PID: 208 Comm: dmesg {taint} 7.2.13+deb14-cloud-amd64 #1 PREEMPT(lazy)\n"
        f"[  1.0] RIP: 0010:{place}\n"
        f"[  1.0] Code: 31 d2 48 e8 27 d4 03 00 {code} 4c 89\n"
        "[  1.0] RIP: 0033:0x7f1fe5ed3829\n"
        "[  1.0] Code: 0f 05 <48> 3d 01 f0\n"
    )


class StaleCode(unittest.TestCase):
    def test_is_a_breakpoint_where_memory_holds_what_the_kernel_patches(self):
        self.assertEqual(emulator.stale_code(panic()), "sched_tick+0xba")
        for place, code in {
            "pick_task_fair+0x11c": "66 <90> 48",
            "__pick_next_task+0x44": "eb <cd> 48 81",
            "__schedule.isra.0+0x9": "0f <1f> 44 00 00",
            "kfree+0x1": "c3 <cc> cc cc cc",
        }.items():
            with self.subTest(place):
                self.assertEqual(emulator.stale_code(panic(place=f"{place}/0x7b0", code=code)), place)
        for harmless in ("Tainted: G            E      ", "Tainted: P           OE      "):
            self.assertEqual(emulator.stale_code(panic(taint=harmless)), "sched_tick+0xba")

    def test_is_nothing_else(self):
        for what, console in {
            "a breakpoint": panic(code="cc <81> 00 00 00"),
            "an interrupt of two bytes": panic(code="03 <81> 00 00 00"),
            "no instruction that is patched": panic(code="0f <1f> 40 00 00"),
            "another nop": panic(code="66 <0f> 1f 44"),
            "another trap": panic(oops="invalid opcode"),
            "a module": panic(place="tick+0x1/0x2 [broken]"),
            "a BPF program": panic(place="bpf_prog_6deef7357e7b4530_dispatch+0x1/0x2"),
            "no function": panic(place="0xffffffffc0201000"),
            "no function, and then one": panic(place="0xffffffffc0201000") + panic(number=2),
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
