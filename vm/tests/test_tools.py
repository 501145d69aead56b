"""What a host must have."""

import os
import tempfile
import unittest
from unittest import mock
from pathlib import Path

from syrup_vm import Error, accel, tools


class Translator(unittest.TestCase):
    def test_must_be_new_enough(self):
        tools.check_translator("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright")
        for version in ("QEMU emulator version 8.2.2 (Debian 1:8.2.2+ds-0ubuntu1)", ""):
            with self.assertRaisesRegex(Error, "QEMU 10"):
                tools.check_translator(version)


class Processor(unittest.TestCase):
    def test_other_than_x86_64_is_named(self):
        with mock.patch.object(tools.platform, "machine", return_value="aarch64"):
            with self.assertRaisesRegex(Error, "x86-64 only.*aarch64"):
                tools.prepare()


class Kvm(unittest.TestCase):
    def obstacle(self, flags, device):
        with tempfile.NamedTemporaryFile("w") as cpuinfo:
            cpuinfo.write(f"flags : fpu {flags} sse\n")
            cpuinfo.flush()
            return accel._obstacle(device, cpuinfo.name)

    def test_is_tried_where_nothing_speaks_against_it(self):
        for flags in ("vmx", "svm"):
            self.assertEqual(self.obstacle(flags, "/dev/null"), "")

    def test_that_is_not_used_says_why_and_what_to_do(self):
        self.assertIn("processor", self.obstacle("", "/dev/null"))
        self.assertIn("load kvm_intel", self.obstacle("vmx", "/nowhere"))
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(os, "access", return_value=False):
            device = Path(folder) / "kvm"
            device.touch()
            self.assertIn("usermod -aG", self.obstacle("vmx", str(device)))
