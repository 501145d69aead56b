"""scripts/install-deps judges by what is there."""

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import test_debian

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts/install-deps"

# What the script itself uses.
_OWN = (
    "bash", "cat", "chmod", "dirname", "grep", "head", "mkdir", "rm", "sed", "sort", "tail", "tr",
    "uname",
)  # fmt: skip

OS_RELEASE = {
    "Debian 12": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n',
    "Debian 13": 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_ID="13"\nID=debian\n',
    "Debian sid": 'PRETTY_NAME="Debian GNU/Linux forky/sid"\nID=debian\n',
    "Ubuntu 24.04": 'NAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n',
    "Ubuntu 22.04": 'NAME="Ubuntu"\nVERSION_ID="22.04"\nID=ubuntu\nID_LIKE=debian\n',
    "Fedora 44": 'NAME="Fedora Linux"\nVERSION_ID=44\nID=fedora\n',
    "Arch": 'NAME="Arch Linux"\nID=arch\n',
}


class InstallDeps(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        for command in _OWN:
            (self.bin / command).symlink_to(shutil.which(command))
        # A host that has it all.
        for command in (
            "cc", "make", "pkg-config", "python3", "setpriv", "busybox", "file", "udevadm", "ip",
            "depmod", "zstd", "apt-get", "dpkg-deb", "virtiofsd", "nsd", "knotd", "unbound", "nginx",
        ):  # fmt: skip
            self.command(command)
        for command in ("clang-19", "clang-format-19", "llvm-config-19"):
            self.command(command, "echo Debian clang version 19.1.7")
        self.qemu("10.0.2")
        self.file("usr/lib/llvm-19/lib/libclang-19.so.1")
        self.file("usr/share/keyrings/debian-archive-keyring.gpg")

    def file(self, name, text=""):
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)

    def command(self, name, does=":"):
        (self.bin / name).write_text(f"#!/bin/sh\n{does}\n")
        (self.bin / name).chmod(0o755)

    def qemu(self, version):
        self.command("qemu-system-x86_64", f"echo QEMU emulator version {version}")

    def without(self, *commands):
        for command in commands:
            (self.bin / command).unlink()

    def ask(self, system, *groups, **environment):
        """(exit status, what it says) of --dry-run."""
        return self.run_script(system, "--dry-run", *groups, **environment)

    def run_script(self, system, *arguments, **environment):
        self.file("etc/os-release", OS_RELEASE[system])
        done = subprocess.run(
            [SCRIPT, *arguments], stderr=subprocess.PIPE, text=True, check=False,
            env={
                "PATH": str(self.bin), "SYRUP_HOST_ROOT": str(self.folder),
                "SYRUP_VM_ACCEL": "tcg", **environment,
            },
        )  # fmt: skip
        return done.returncode, done.stderr

    def test_a_host_with_everything_is_never_asked_what_it_is(self):
        for system in OS_RELEASE:
            with self.subTest(system):
                self.assertEqual(self.ask(system), (0, ""))

    def test_what_is_missing_is_named_and_installed_by_the_systems_own_names(self):
        self.without("clang-19", "zstd", "make")
        missing = "missing: make, clang 19 or newer, zstd\n"
        for system, packages in {
            "Debian 12": "apt: build-essential clang-19 zstd",
            "Debian 13": "apt: build-essential clang-19 zstd",
            "Debian sid": "apt: build-essential clang-19 zstd",
            "Ubuntu 24.04": "apt: build-essential clang-19 zstd",
            "Fedora 44": "dnf: clang make zstd",
        }.items():
            with self.subTest(system):
                status, said = self.ask(system, "build", "vm")
                self.assertEqual(status, 1)
                self.assertIn(missing, said)
                self.assertTrue(said.endswith(f"would install with {packages}\n"), said)

    @unittest.skipUnless(os.geteuid() == 0, "installing is root's")
    def test_what_servers_packages_would_start_does_not_start_now_or_later(self):
        self.without("nginx")
        policy = self.folder / "usr/sbin/policy-rc.d"
        policy.parent.mkdir(parents=True)
        nginx, disabled = self.bin / "nginx", self.folder / "disabled"
        # Installs nothing where it would be started.
        self.command("apt-get", f"{policy} ssh && ! {policy} nginx && echo > {nginx} && chmod 755 {nginx}")
        self.command("systemctl", f'echo "$*" >> {disabled}')
        status, said = self.run_script("Debian 13", "test")
        self.assertEqual(status, 0, said)
        self.assertEqual(disabled.read_text(), "disable nginx\n")
        self.assertFalse(policy.exists())
        # What the machine says itself is as good, and stays.
        self.without("nginx")
        self.file("usr/sbin/policy-rc.d", '#!/bin/sh\n[ "$1" = ssh ] || exit 101\n')
        policy.chmod(0o755)
        self.assertEqual(self.run_script("Debian 13", "test")[0], 0)
        self.assertTrue(policy.exists())

    def test_where_installing_is_unknown_the_missing_is_named(self):
        self.without("zstd")
        for system in ("Arch", "Ubuntu 22.04"):
            with self.subTest(system):
                status, said = self.ask(system)
                self.assertEqual(status, 1)
                self.assertIn("missing here: zstd\n", said)
                self.assertIn("installing is known for", said)

    def test_any_clang_that_is_new_enough_will_do(self):
        self.without("clang-19")
        self.command("clang", "echo clang version 21.1.0 '(Fedora 21.1.0-1.fc44)'")
        status, said = self.ask("Fedora 44", "build")
        self.assertEqual(status, 0)
        self.assertIn("export BPF_CLANG=clang", said)
        self.assertEqual(self.ask("Fedora 44", "build", BPF_CLANG="clang"), (0, ""))
        self.command("clang", "echo Ubuntu clang version 18.1.3")
        self.assertEqual(self.ask("Ubuntu 24.04", "build")[0], 1)

    def test_qemu_10_is_asked_for_only_without_kvm(self):
        self.qemu("8.2.2")
        self.assertEqual(self.ask("Ubuntu 24.04", "vm", SYRUP_VM_ACCEL="kvm")[0], 0)
        status, said = self.ask("Ubuntu 24.04", "vm")
        # No package of that release would help.
        self.assertEqual(status, 1)
        self.assertIn("missing here: QEMU\n", said)
        self.assertIn("QEMU 10", said)

    def test_debian_12_has_its_qemu_from_backports_and_no_virtiofsd(self):
        self.qemu("7.2.15")
        self.without("virtiofsd")
        status, said = self.ask("Debian 12", "vm")
        self.assertEqual(status, 1)
        self.assertIn("missing: QEMU\n", said)
        self.assertTrue(said.rstrip().endswith("from bookworm-backports: qemu-system-x86"), said)

    def test_elsewhere_virtiofsd_is_installed(self):
        self.without("virtiofsd")
        for system in ("Debian 13", "Ubuntu 24.04", "Fedora 44"):
            with self.subTest(system):
                status, said = self.ask(system, "vm")
                self.assertEqual(status, 1)
                self.assertTrue(said.endswith(": virtiofsd\n"), said)
        self.file("usr/libexec/virtiofsd")
        (self.folder / "usr/libexec/virtiofsd").chmod(0o755)
        self.assertEqual(self.ask("Fedora 44", "vm"), (0, ""))

    def test_files_count_like_commands(self):
        (self.folder / "usr/lib/llvm-19/lib/libclang-19.so.1").unlink()
        (self.folder / "usr/share/keyrings/debian-archive-keyring.gpg").unlink()
        _, said = self.ask("Fedora 44", "build", "vm")
        self.assertIn("missing: libclang, Debian's keyring\n", said)
        self.assertIn("dnf: clang-devel debian-keyring\n", said)

    def test_debians_mirror_is_known_by_its_origin(self):
        (self.bin / "awk").symlink_to(shutil.which("awk"))
        ask = f"eval \"$(sed -n '/^debian_mirror()/,/^}}/p' {SCRIPT})\"; debian_mirror"
        for targets, address in (
            (test_debian.DEBIAN_13, "http://mirror.example/debian/\n"), (test_debian.UBUNTU, ""),
        ):  # fmt: skip
            self.command("apt-get", f"cat <<'EOF'\n{targets}EOF")
            done = subprocess.run(
                ["bash", "-c", ask], env={"PATH": str(self.bin)}, stdout=subprocess.PIPE, text=True,
                check=True,
            )  # fmt: skip
            self.assertEqual(done.stdout, address)

    def test_groups_have_names(self):
        self.assertEqual(self.ask("Debian 13", "bulid")[0], 1)
