"""What is kept of guests."""

import json
import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from syrup_vm import Error, emulator, record


class Records(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.runs = Path(folder.name) / "vm"
        for module, name, path in (
            (record, "RUNS", self.runs),
            (emulator, "LOG", self.runs / "faults.jsonl"),
            (emulator, "_EVIDENCE", self.runs / "faults"),
        ):
            patch = mock.patch.object(module, name, path)
            patch.start()
            self.addCleanup(patch.stop)

    def names(self):
        return sorted(f.name for f in self.runs.iterdir() if f.is_dir())

    def test_replace_an_earlier_one_of_their_name(self):
        with record.new("a") as guest:
            (guest.folder / "dmesg").write_text("old")
            (guest.folder / "sub").mkdir()
            guest.note(verdict="ok")
        with record.new("a") as guest:
            self.assertEqual([f.name for f in guest.folder.iterdir()], ["lock"])

    def test_belong_to_one_guest_at_a_time(self):
        with record.new("a"), record.new("b"):
            with self.assertRaisesRegex(Error, "a guest named a is running"), record.new("a"):
                pass
        with record.new("a"):
            pass

    def test_have_names_that_are_names(self):
        # The evidence of emulation's faults has two of them.
        for name in ("..", "a/b", "", ".lock", "a b", "emulator-faults", "emulator-faults.jsonl"):
            with self.subTest(name), self.assertRaises(Error), record.new(name):
                pass

    def test_without_a_name_get_their_own(self):
        with record.new(None), record.new(None):
            self.assertEqual(len(self.names()), 2)

    def test_say_what_was_known_when_vm_run_was_killed(self):
        with record.new("a") as guest:
            guest.note(command=["x"])
            guest.note(status=3)
            known = json.loads((guest.folder / "result.json").read_text())
        self.assertEqual((known["name"], known["command"], known["status"]), ("a", ["x"], 3))

    def test_are_bounded_but_those_in_use_stay(self):
        with record.new("used") as used, mock.patch.object(record, "KEPT", 3):
            os.utime(used.folder, (1, 1))
            for number in range(5):
                with record.new(f"n{number}") as guest:
                    pass
                os.utime(guest.folder, (10 + number, 10 + number))
            with record.new("last"):
                pass
            self.assertEqual(self.names(), ["last", "n3", "n4", "used"])

    def test_of_an_emulators_fault_are_evidence(self):
        for number in (1, 2):
            with record.new("a") as guest:
                (guest.folder / "console").write_text("Oops")
                counted, kept = emulator.keep(guest, "sched_tick+0xba", {"accel": "tcg"}, counted=True)
            self.assertEqual(counted, number)
        self.assertEqual((kept / "console").read_text(), "Oops")
        lines = [json.loads(line) for line in emulator.LOG.read_text().splitlines()]
        self.assertEqual([line["place"] for line in lines], ["sched_tick+0xba"] * 2)
