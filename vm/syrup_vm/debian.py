"""Packages of the Debian archive, unpacked into a folder.

Each suite has an apt root of its own in the cache (`APT_CONFIG`), so the
machine's sources, lists and installed packages stay as they are and no root
rights are needed. apt checks every list against the suite's signature, and each
package against the hash in the list or in vm/kernels.lock."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import Error, cache, network

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_HELPER = "/usr/lib/apt/apt-helper"

# How to reach the mirror and how far to trust its clock is the machine's
# business (proxies, snapshots); whether to check signatures is not.
INHERITED = re.compile(
    r"Acquire::(Check-Valid-Until|Check-Date|Max-ValidTime|Retries|https?\b|Proxy)", re.I
)


@dataclass(frozen=True)
class Package:
    """One version of a package, wherever the archive still has it."""

    name: str
    version: str
    path: str  # below the mirror's address
    sha256: str

    def unpack(self, target: Path) -> None:
        """Downloads it and unpacks it into `target`; no scripts run."""
        deb = target / "package.deb"
        address = f"{mirror().rstrip('/')}/{self.path}"
        _apt(_configure("any", None), _HELPER, "download-file", address, str(deb), f"SHA256:{self.sha256}")
        subprocess.run(["dpkg-deb", "--extract", deb, target], check=True)
        deb.unlink()


class Suite:
    """One suite (`sid`, `trixie-backports`), with its package lists."""

    def __init__(self, name: str):
        self.name = name
        self._config: Path | None = None
        self._packages: list[str] = []

    def packages(self, prefix: str) -> list[str]:
        """The names that start with `prefix`. Fetches the lists on first use."""
        self._update()
        return [name for name in self._packages if name.startswith(prefix)]

    def package(self, name: str) -> Package:
        """The newest version, as the signed list has it."""
        self._update()
        text = _apt(self._config, "apt-cache", "show", "--no-all-versions", name)
        field = lambda name: re.search(rf"^{name}: (\S+)$", text, re.M)[1]
        return Package(name, field("Version"), field("Filename"), field("SHA256"))

    def _update(self) -> None:
        if self._config:
            return
        if not os.path.exists(KEYRING):
            raise Error(f"no Debian keyring at {KEYRING}: install the package debian-archive-keyring")
        source = f"deb [signed-by={KEYRING}] {mirror()} {self.name} main\n"
        config = _configure(self.name, source)
        # Without --error-on=any apt takes "no network" for a mere warning.
        _apt(config, "apt-get", "-q", "update", "--error-on=any")
        self._packages = _apt(config, "apt-cache", "pkgnames").split()
        self._config = config


def _configure(name: str, source: str | None) -> Path:
    """apt's configuration for an apt root of its own."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise Error(
                f"{tool} is missing, which downloads Debian's packages: install apt and dpkg, "
                "or give vm/run a kernel of your own (--kernel PATH)"
            )
    root = cache.folder("apt", name)
    for part in ("etc/apt.conf.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial"):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    (root / "sources.list").write_text(source or "", encoding="utf-8")
    machine = _run(["apt-config", "dump"]).splitlines()
    settings = [
        # A dead network is to be reported, not waited for.
        'Acquire::http::Timeout "30";',
        'Acquire::https::Timeout "30";',
        *(line for line in machine if INHERITED.match(line)),
        f'Dir "{root}/";',
        f'Dir::Etc "{root}/etc";',
        f'Dir::Etc::sourcelist "{root}/sources.list";',
        'Dir::Etc::sourceparts "-";',
        f'Dir::State "{root}/state";',
        f'Dir::State::status "{root}/status";',
        f'Dir::Cache "{root}/cache";',
        'Dir::Cache::srcpkgcache "";',
        'Acquire::GzipIndexes "true";',
        'Acquire::Languages "none";',
        # apt's own user cannot enter a cache below root's home.
        'APT::Sandbox::User "root";',
    ]
    config = root / "apt.conf"
    config.write_text("\n".join(settings) + "\n", encoding="utf-8")
    return config


def mirror() -> str:
    """The archive's address: the user's choice, or where this machine gets
    its own Debian packages from."""
    if address := os.environ.get("SYRUP_DEBIAN_MIRROR"):
        return address
    targets = ""
    if shutil.which("apt-get"):
        targets = _run(["apt-get", "indextargets", "--format",
                        "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)", "Created-By: Packages"])  # fmt: skip
    if found := debian_of(targets):
        return found
    known = "no Debian mirror" if targets.strip() else "no source whose lists are here (`apt-get update`?)"
    raise Error(
        f"this machine's apt has {known}: set SYRUP_DEBIAN_MIRROR to the address of a Debian "
        "mirror, such as http://HOST/debian"
    )


def debian_of(targets: str) -> str | None:
    """The address of Debian itself among apt's sources: by their signed origin,
    since anybody may call a suite "stable" and a component "main". The archive of
    security updates has another label, backports and derivatives another origin."""
    for line in targets.splitlines():
        *about, address = line.split("|", 3)
        if about == ["Debian", "Debian", "main"]:
            return address
    return None


def _apt(config: Path, *command: str) -> str:
    return _run(list(command), env=dict(os.environ, APT_CONFIG=str(config)))


def _run(command: list[str], **options) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    if done.returncode != 0:
        raise network.failure(f"`{' '.join(command)}`", done.stderr)
    return done.stdout
