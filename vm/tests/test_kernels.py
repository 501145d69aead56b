"""From a role to a kernel."""

import unittest

from syrup_vm import kernels


class FakeSuite:
    def __init__(self, *names):
        self.names = names

    def packages(self, prefix):
        return [name for name in self.names if name.startswith(prefix)]


class Candidates(unittest.TestCase):
    def versions(self, *names):
        return [version for _, version in kernels._candidates(FakeSuite(*names))]

    def test_are_the_newest_of_each_series_newest_first(self):
        self.assertEqual(
            self.versions(
                "linux-binary-7.2.9+deb13-cloud-amd64",
                "linux-binary-7.2.12+deb13-cloud-amd64",
                "linux-binary-7.10.1+deb13-cloud-amd64",
                "linux-binary-7.0.13+deb13-cloud-amd64",
            ),
            ["7.10.1+deb13", "7.2.12+deb13", "7.0.13+deb13"],
        )

    def test_are_binaries_rather_than_the_wrappers_of_the_same_version(self):
        [(package, _)] = kernels._candidates(
            FakeSuite("linux-image-7.2.1-cloud-amd64", "linux-binary-7.2.1-cloud-amd64")
        )
        self.assertEqual(package, "linux-binary-7.2.1-cloud-amd64")

    def test_are_neither_other_flavours_nor_unsigned_nor_debug_packages(self):
        self.assertEqual(
            self.versions(
                "linux-image-7.2.1-amd64",
                "linux-image-7.2.1-cloud-amd64-dbg",
                "linux-binary-unsigned-7.2.1-cloud-amd64",
            ),
            [],
        )
