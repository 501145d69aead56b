"""From a role to a kernel."""

import hashlib
import os
import re
import shutil
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from syrup_vm import Error, Unavailable, kernels


class FakeSuite:
    def __init__(self, *names):
        self.names = names

    def packages(self, prefix):
        return [name for name in self.names if name.startswith(prefix)]


class Candidates(unittest.TestCase):
    def versions(self, *names):
        return [version for _, _, version in kernels._candidates(FakeSuite(*names))]

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
        [(_, package, _)] = kernels._candidates(
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


class Roles(unittest.TestCase):
    """With an archive and a cache of their own; kernels are files that say what
    their verdict is."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.archive = {}
        self.fetched = []
        self.said = []
        for target, name, value in (
            (kernels, "LOCK", self.root / "kernels.lock"),
            (kernels.debian, "Suite", self.suite),
            (kernels, "_fetch", self.fetch),
        ):
            patch = mock.patch.object(target, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        patch = mock.patch.dict(os.environ, SYRUP_CACHE=str(self.root / "cache"))
        patch.start()
        self.addCleanup(patch.stop)

    def suite(self, name):
        suite = FakeSuite(*(f"linux-binary-{v}-cloud-amd64" for v in self.archive.get(name, {})))
        suite.name = name
        suite.package = lambda package: kernels.Package(
            package, "1", "pool/x.deb", hashlib.sha256(package.encode()).hexdigest()
        )
        return suite

    def fetch(self, locked, _progress):
        verdicts = {v: verdict for suite in self.archive.values() for v, verdict in suite.items()}
        if locked.version not in verdicts:
            raise Unavailable(f"{locked.version}: 404  Not Found")
        self.fetched.append(locked.version)
        folder = kernels._root() / locked.key()
        (folder / "boot").mkdir(parents=True, exist_ok=True)
        (folder / "boot" / f"vmlinuz-{locked.version}").write_bytes(b"Linux version " + locked.version.encode())
        (folder / "verdict").write_text(verdicts[locked.version])
        return verdicts[locked.version]

    def find(self, role):
        return kernels.find(role, self.said.append)

    ARCHIVE = {
        "sid": {"7.2.13": "good"},
        "experimental": {"7.4": "malformed-btf"},
        "trixie-backports": {
            "7.3.4": "good", "7.2.12": "malformed-btf", "7.1.13": "malformed-btf",
            "7.0.13": "good", "6.19.14": "good",
        },
        "trixie": {"6.12.107": "no-scx"},
    }  # fmt: skip

    def refreshed(self):
        self.archive = {suite: dict(versions) for suite, versions in self.ARCHIVE.items()}
        return {role: kernels.refresh(role).release for role in kernels.ROLES}

    def test_are_chosen_by_what_kernels_are_over_all_suites(self):
        self.assertEqual(
            self.refreshed(),
            {"newest": "7.3.4", "oldest": "7.0.13", "malformed-btf": "7.4", "no-scx": "6.12.107"},
        )

    def test_keep_their_kernel_whatever_the_archive_has_since(self):
        self.refreshed()
        self.archive["sid"] = {"7.9": "good"}
        self.assertEqual(self.find("newest").release, "7.3.4")
        self.assertEqual(self.find("default"), self.find("newest"))
        self.assertEqual(self.find("newest").note, "")

    def test_are_locked_for_who_has_nothing_yet(self):
        self.refreshed()
        shutil.rmtree(self.root / "cache")
        self.fetched.clear()
        self.assertEqual(self.find("newest").release, "7.3.4")
        self.assertEqual(self.fetched, ["7.3.4"])

    def test_are_played_by_another_when_the_archive_forgot_theirs_and_that_is_said(self):
        self.refreshed()
        shutil.rmtree(self.root / "cache")
        self.archive = {"sid": {"7.9": "good", "7.8": "malformed-btf"}}
        for _ in range(2):
            kernel = self.find("newest")
            self.assertEqual(kernel.release, "7.9")
            self.assertRegex(kernel.note, "NOT THE LOCKED.*7.3.4.*vm/kernel --refresh newest")
        # Asked once, not each time.
        self.assertEqual(self.fetched.count("7.9"), 1)
        self.assertIn("404", "".join(self.said))
        # A new lock ends it.
        self.assertEqual(kernels.refresh("newest").release, "7.9")
        self.assertEqual(self.find("newest").note, "")

    def test_follow_a_lock_that_somebody_else_changed(self):
        self.refreshed()
        theirs = kernels.read_lock(kernels.LOCK)
        shutil.rmtree(self.root / "cache")
        self.archive = {"sid": {"7.9": "good"}}
        self.find("newest")
        self.archive = self.ARCHIVE
        theirs["newest"] = kernels._packages(self.suite("sid"), "linux-binary-7.2.13-cloud-amd64", "7.2.13")
        kernels.write_lock(kernels.LOCK, theirs)
        self.assertEqual(self.find("newest").release, "7.2.13")

    def test_go_back_to_their_own_when_it_can_be_had_again(self):
        self.refreshed()
        shutil.rmtree(self.root / "cache")
        self.archive = {"sid": {"7.9": "good"}}
        self.find("newest")
        self.archive = self.ARCHIVE
        with mock.patch.object(kernels.time, "time", return_value=kernels.time.time() + 2 * kernels._INSTEAD_S):
            self.assertEqual(self.find("newest").release, "7.3.4")

    def test_that_nobody_can_play_say_why_for_each_kernel(self):
        self.archive = {"sid": {"7.9": "malformed-btf"}}
        with self.assertRaisesRegex(Unavailable, r"sid: 7\.9 is malformed-btf"):
            self.find("newest")

    def test_are_not_played_by_a_kernel_of_another_kind(self):
        self.refreshed()
        wrong = kernels.read_lock(kernels.LOCK)
        wrong["newest"] = wrong["malformed-btf"]
        kernels.write_lock(kernels.LOCK, wrong)
        with self.assertRaisesRegex(Error, "is malformed-btf, not good"):
            self.find("newest")

    def test_survive_their_lock_file(self):
        self.refreshed()
        locked = kernels.read_lock(kernels.LOCK)
        kernels.write_lock(kernels.LOCK, locked)
        self.assertEqual(kernels.read_lock(kernels.LOCK), locked)
        kernels.LOCK.write_text('{"newest": {}}')
        with self.assertRaisesRegex(Error, "restore it from git"):
            self.find("newest")


class Paths(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.tree = Path(folder.name) / "linux"
        (self.tree / "arch/x86/boot").mkdir(parents=True)
        self.image = self.tree / "arch/x86/boot/bzImage"

    def test_name_images_and_built_trees(self):
        self.image.write_bytes(b"Linux version 7.5.0-mine (x)")
        (self.tree / ".config").touch()
        (self.tree / "vmlinux").touch()
        for given, path in (
            (self.image, self.image), (self.tree, self.tree), (self.tree / "vmlinux", self.tree),
        ):  # fmt: skip
            kernel = kernels.find(str(given))
            self.assertEqual((kernel.path, kernel.release), (path, "7.5.0-mine"))

    def test_that_lead_nowhere_are_refused(self):
        with self.assertRaisesRegex(Error, "make bzImage"):
            kernels.find(str(self.tree))
        with self.assertRaisesRegex(Error, "neither a role .*newest"):
            kernels.find("newset")


class LockFile(unittest.TestCase):
    def test_of_the_repository_has_a_kernel_for_each_role(self):
        locked = kernels.read_lock(kernels.LOCK)
        self.assertEqual(set(locked), set(kernels.ROLES))
        for role, choice in locked.items():
            with self.subTest(role):
                number = tuple(int(n) for n in re.findall(r"\d+", choice.version))
                self.assertGreaterEqual(number, kernels.ROLES[role].since)
                for package in choice.packages:
                    self.assertRegex(package.sha256, r"^[0-9a-f]{64}$")
                    self.assertTrue(package.path.startswith("pool/main/l/linux"))
