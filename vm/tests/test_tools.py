"""What a host must have."""

import os
import subprocess
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


class VirtmeNg(unittest.TestCase):
    def test_is_installed_by_the_hash_of_each_package_only(self):
        lines = [line for line in tools.VIRTME_NG.read_text().splitlines() if line[0] != "#"]
        for line in lines:
            self.assertRegex(line, r"^[\w-]+==[\w.]+ --hash=sha256:[0-9a-f]{64}$")
        commands = []

        def run(command, **_):
            commands.append(list(map(str, command)))
            return subprocess.CompletedProcess(command, 0)

        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.dict(os.environ, SYRUP_CACHE=folder),
            mock.patch.object(tools.subprocess, "run", run),
            mock.patch.object(tools.Path, "touch"),
        ):
            tools._virtme_ng(lambda text: None)
        self.assertIn("--require-hashes", commands[-1])
        self.assertEqual(commands[-1][-1], str(tools.VIRTME_NG))


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
