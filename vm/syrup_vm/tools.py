"""virtme-ng, which boots a kernel on the machine's own file system, and
virtiofsd, which serves that file system to the guest."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from . import Error, Unavailable, cache, debian

VIRTME_NG = "1.42"

# What the package `virtiofsd` installs, on the releases that have it.
_VIRTIOFSD = "/usr/libexec/virtiofsd"
_VIRTIOFSD_PARTS = ("virtiofsd", "libc6", "libgcc-s1", "libseccomp2", "libcap-ng0")

# 7.2 (Debian 12) leaves garbage in the flags after cmpxchg16b, which the guest
# kernel's allocator uses: one boot in three ends in a double fault.
_QEMU_AT_LEAST = 10

_NEEDED = ("qemu-system-x86_64", "busybox", "file", "udevadm", "depmod", "zstd")


def prepare(progress=lambda text: None) -> dict[str, str]:
    """The environment in which `vng` runs. Fetches what is missing."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [tool for tool in _NEEDED if not shutil.which(tool, path=path)]
    if missing:
        raise Error(f"missing: {', '.join(missing)}. Run `scripts/install-deps vm`.")
    found = subprocess.run(["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE, text=True)
    version = re.search(r"version (\d+)", found.stdout)
    if not version or int(version[1]) < _QEMU_AT_LEAST:
        raise Error(
            f"QEMU {_QEMU_AT_LEAST} or newer is needed, this is {version[1] if version else 'none'}. "
            "Run `scripts/install-deps vm`."
        )
    with cache.exclusive("tools"):
        folders = [_virtme_ng(progress)]
        if not os.path.exists(_VIRTIOFSD):
            folders.append(_trixie_virtiofsd(progress))
    return dict(os.environ, PATH=":".join(map(str, folders)) + ":" + path)


def _virtme_ng(progress) -> Path:
    # A venv belongs to one version of Python, and works only where it was made.
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    venv = cache.folder(f"virtme-ng-{VIRTME_NG}-python{python}")
    complete = venv / "complete"
    if not complete.exists():
        progress(f"installing virtme-ng {VIRTME_NG}")
        log = cache.folder("virtme-ng.log")
        with open(log, "w", encoding="utf-8") as out:
            for command in (
                [sys.executable, "-m", "venv", "--clear", venv],
                [venv / "bin/pip", "install", f"virtme-ng=={VIRTME_NG}"],
            ):
                if subprocess.run(command, stdout=out, stderr=out).returncode != 0:
                    out.flush()
                    raise Unavailable(
                        f"virtme-ng {VIRTME_NG} could not be installed:\n"
                        + log.read_text(encoding="utf-8")[-2000:]
                    )
        complete.touch()
    return venv / "bin"


def _trixie_virtiofsd(progress) -> Path:
    """Debian 12 has no usable virtiofsd, and Debian 13's needs Debian 13's C
    library: run it through that library's own loader, from a folder."""
    target = cache.folder("virtiofsd")
    if not (target / "bin/virtiofsd").exists():
        progress("downloading virtiofsd")
        suite = debian.Suite("trixie")
        suite.packages("virtiofsd")
        with cache.new_folder(target) as work:
            for package in _VIRTIOFSD_PARTS:
                suite.unpack(package, work)
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
