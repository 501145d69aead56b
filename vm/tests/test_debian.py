"""Where packages come from, and why they do not."""

import os
import unittest
from unittest import mock

from syrup_vm import Error, Unavailable, debian, network

# $(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI), as apt prints it.
DEBIAN_13 = """\
Brave Software|Brave Browser|main|https://browser.example/
1Password|1Password|main|https://passwords.example/debian/
Debian Backports|Debian Backports|main|http://mirror.example/debian/
Debian|Debian-Security|main|http://mirror.example/debian-security/
Debian|Debian|contrib|http://mirror.example/contrib/
Debian|Debian|main|http://mirror.example/debian/
"""
UBUNTU = """\
Ubuntu|Ubuntu|main|http://ubuntu.example/ubuntu/
Ubuntu|Ubuntu|universe|http://ubuntu.example/ubuntu/
Docker|Docker CE|stable|https://containers.example/ubuntu/
"""


class Mirror(unittest.TestCase):
    def test_is_the_one_whose_origin_is_debian(self):
        self.assertEqual(debian.debian_of(DEBIAN_13), "http://mirror.example/debian/")

    def test_is_no_other_distributions(self):
        self.assertIsNone(debian.debian_of(UBUNTU))
        self.assertIsNone(debian.debian_of(""))

    def ask(self, targets, **environment):
        with (
            mock.patch.dict(os.environ, environment),
            mock.patch.object(debian, "_run", return_value=targets),
            mock.patch.object(debian.shutil, "which", return_value="/usr/bin/apt-get"),
        ):
            return debian.mirror()

    def test_of_a_machine_without_debian_must_be_named(self):
        with mock.patch.dict(os.environ):
            os.environ.pop("SYRUP_DEBIAN_MIRROR", None)
            self.assertEqual(self.ask(DEBIAN_13), "http://mirror.example/debian/")
            with self.assertRaisesRegex(Error, "no Debian mirror.*SYRUP_DEBIAN_MIRROR"):
                self.ask(UBUNTU)
            with self.assertRaisesRegex(Error, "apt-get update.*SYRUP_DEBIAN_MIRROR"):
                self.ask("\n")

    def test_is_the_users_before_all(self):
        self.assertEqual(self.ask(DEBIAN_13, SYRUP_DEBIAN_MIRROR="http://mine"), "http://mine")


class Failures(unittest.TestCase):
    def test_of_network_and_archive_may_be_waited_out(self):
        for said in (
            "Err:1 http://mirror.example/debian sid InRelease\n"
            "  Temporary failure resolving 'mirror.example'",
            "E: Failed to fetch http://127.0.0.1:9/debian/pool/x.deb  Could not connect to "
            "127.0.0.1:9 (127.0.0.1). - connect (111: Connection refused)",
            "E: Failed to fetch http://mirror.example/debian/pool/x.deb  404  Not Found [IP: ::1 80]",
            "Could not resolve 'nowhere.invalid'",
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError("
            "'<pip._vendor.urllib3...>: Failed to establish a new connection: [Errno 111] "
            "Connection refused')'",
        ):
            with self.subTest(said):
                self.assertIsInstance(network.failure("x", said), Unavailable)

    def test_of_our_own_making_may_not(self):
        for said in (
            "E: Syntax error /home/user/.cache/syrup/apt/sid/apt.conf:4: Extra junk after value",
            "E: The repository 'http://x sid InRelease' is not signed.",
            "Error: ensurepip is not available",
            "E: Hash Sum mismatch",
            "",
        ):
            with self.subTest(said):
                self.assertNotIsInstance(network.failure("x", said), Unavailable)
