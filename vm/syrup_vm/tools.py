"""virtme-ng, which boots a kernel on the machine's own file system, and
virtiofsd, which serves that file system to the guest."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from . import Error, cache, debian, network

VIRTME_NG = Path(__file__).resolve().parent.parent / "virtme-ng.txt"

# What the package `virtiofsd` installs, on the releases that have it.
_VIRTIOFSD = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd")
_VIRTIOFSD_PARTS = ("virtiofsd", "libc6", "libgcc-s1", "libseccomp2", "libcap-ng0")

# The translator of 7.2 (Debian 12) leaves garbage in the flags after cmpxchg16b,
# which the guest kernel's allocator uses: one boot in three ends in a double
# fault. With KVM the processor does it.
_TRANSLATOR_AT_LEAST = 10

_NEEDED = ("qemu-system-x86_64", "busybox", "file", "udevadm", "depmod", "zstd")


def prepare(progress=lambda text: None) -> dict[str, str]:
    """The environment in which `vng` runs. Fetches what is missing."""
    if platform.machine() != "x86_64":
        raise Error(f"guests are x86-64 only so far, this is {platform.machine()}")
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [tool for tool in _NEEDED if not shutil.which(tool, path=path)]
    if missing:
        raise Error(f"missing: {', '.join(missing)}. Run `scripts/install-deps vm`.")
    with cache.exclusive("tools"):
        folders = [_virtme_ng(progress)]
        if not any(os.path.exists(place) for place in _VIRTIOFSD):
            folders.append(_trixie_virtiofsd(progress))
    return dict(os.environ, PATH=":".join(map(str, folders)) + ":" + path)


def check_translator(version: str) -> None:
    """Is this QEMU (`--version`) fit to emulate, without KVM?"""
    found = re.search(r"version (\d+)", version)
    if not found or int(found[1]) < _TRANSLATOR_AT_LEAST:
        raise Error(
            f"without KVM QEMU {_TRANSLATOR_AT_LEAST} or newer is needed, this is "
            f"{found[1] if found else 'none'}. Run `SYRUP_VM_ACCEL=tcg scripts/install-deps vm`."
        )


def qemu_version() -> str:
    return subprocess.run(
        ["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE, text=True, check=False
    ).stdout


def _virtme_ng(progress) -> Path:
    # A venv belongs to one version of Python, and works only where it was made.
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    wanted = hashlib.sha256(VIRTME_NG.read_bytes()).hexdigest()[:12]
    venv = cache.folder(f"virtme-ng-{wanted}-python{python}")
    complete = venv / "complete"
    if not complete.exists():
        progress("installing virtme-ng")
        log = cache.folder("virtme-ng.log")
        with open(log, "w", encoding="utf-8") as out:
            for command in (
                [sys.executable, "-m", "venv", "--clear", venv],
                [venv / "bin/pip", "install", "--require-hashes", "--only-binary=:all:",
                 "--requirement", VIRTME_NG],
            ):  # fmt: skip
                if subprocess.run(command, stdout=out, stderr=out).returncode != 0:
                    out.flush()
                    said = log.read_text(encoding="utf-8")[-2000:]
                    raise network.failure("installing virtme-ng", said)
        complete.touch()
    return venv / "bin"


def _trixie_virtiofsd(progress) -> Path:
    """Debian 12 has no usable virtiofsd, and Debian 13's needs Debian 13's C
    library: run it through that library's own loader, from a folder."""
    target = cache.folder("virtiofsd")
    if not (target / "bin/virtiofsd").exists():
        progress("downloading virtiofsd")
        suite = debian.Suite("trixie")
        with cache.new_folder(target) as work:
            for package in _VIRTIOFSD_PARTS:
                suite.package(package).unpack(work)
            wrapper = work / "bin/virtiofsd"
            wrapper.parent.mkdir()
            wrapper.write_text(
                "#!/bin/sh\n"
                'usr=$(dirname "$0")/../usr\n'
                "lib=$usr/lib/x86_64-linux-gnu\n"
                'exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib" '
                '"$usr/libexec/virtiofsd" "$@"\n',
                encoding="utf-8",
            )
            wrapper.chmod(0o755)
    return target / "bin"
