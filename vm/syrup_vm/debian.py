"""Packages from any suite of the Debian archive, unpacked into a folder.

Each suite has an apt root of its own in the cache (`APT_CONFIG`), so the
machine's sources, lists and installed packages stay as they are and no root
rights are needed. apt checks every file against the suite's signature."""

import os
import re
import subprocess
from pathlib import Path

from . import Error, Unavailable, cache

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# How to reach the mirror and how far to trust its clock is the machine's
# business (proxies, snapshots); whether to check signatures is not.
INHERITED = re.compile(
    r"Acquire::(Check-Valid-Until|Check-Date|Max-ValidTime|Retries|https?\b|Proxy)", re.I
)


class Suite:
    """One suite (`sid`, `trixie-backports`), with its package lists."""

    def __init__(self, name: str):
        self.name = name
        self._root = cache.folder("apt", name)
        self._packages: list[str] | None = None

    def packages(self, prefix: str) -> list[str]:
        """The names that start with `prefix`. Fetches the lists on first use."""
        if self._packages is None:
            self._update()
            self._packages = self._apt("apt-cache", "pkgnames").split()
        return [name for name in self._packages if name.startswith(prefix)]

    def sha256(self, package: str) -> str:
        """The hash the signed index gives for the newest version."""
        text = self._apt("apt-cache", "show", "--no-all-versions", package)
        return re.search(r"^SHA256: (\w+)$", text, re.M)[1]

    def unpack(self, package: str, target: Path) -> None:
        """Downloads `package` and unpacks it into `target`; no scripts run."""
        self._apt("apt-get", "-q", "download", package, cwd=target)
        [deb] = target.glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", deb, target], check=True)
        deb.unlink()

    def _update(self) -> None:
        if not os.path.exists(KEYRING):
            raise Error("no Debian keyring: apt-get install debian-archive-keyring")
        for part in ("etc/apt.conf.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial"):
            (self._root / part).mkdir(parents=True, exist_ok=True)
        (self._root / "status").touch()
        (self._root / "sources.list").write_text(
            f"deb [signed-by={KEYRING}] {mirror()} {self.name} main\n", encoding="utf-8"
        )
        machine = _run(["apt-config", "dump"]).splitlines()
        settings = [
            # A dead network is to be reported, not waited for.
            'Acquire::http::Timeout "30";',
            'Acquire::https::Timeout "30";',
            *(line for line in machine if INHERITED.match(line)),
            f'Dir "{self._root}/";',
            f'Dir::Etc "{self._root}/etc";',
            f'Dir::Etc::sourcelist "{self._root}/sources.list";',
            'Dir::Etc::sourceparts "-";',
            f'Dir::State "{self._root}/state";',
            f'Dir::State::status "{self._root}/status";',
            f'Dir::Cache "{self._root}/cache";',
            'Dir::Cache::srcpkgcache "";',
            'Acquire::GzipIndexes "true";',
            'Acquire::Languages "none";',
            # apt's own user cannot enter a cache below root's home.
            'APT::Sandbox::User "root";',
        ]
        (self._root / "apt.conf").write_text("\n".join(settings) + "\n", encoding="utf-8")
        # Without --error-on=any apt takes "no network" for a mere warning.
        self._apt("apt-get", "-q", "update", "--error-on=any")

    def _apt(self, *command: str, cwd: Path | None = None) -> str:
        env = dict(os.environ, APT_CONFIG=str(self._root / "apt.conf"))
        return _run(list(command), env=env, cwd=cwd)


def mirror() -> str:
    """The archive's address: the user's choice, or where this machine gets
    its own Debian packages from."""
    if address := os.environ.get("SYRUP_DEBIAN_MIRROR"):
        return address
    release = {"stable", "oldstable", "testing", "sid", "unstable", _codename()}
    targets = _run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)",
         "Created-By: Packages"]
    )
    for line in targets.splitlines():
        suite, component, uri = line.split(maxsplit=2)
        if suite in release and component == "main":
            return uri
    raise Error(
        "this machine's apt sources name no Debian mirror: "
        "set SYRUP_DEBIAN_MIRROR to the address of one"
    )


def _codename() -> str:
    text = Path("/etc/os-release").read_text(encoding="utf-8")
    found = re.search(r"^VERSION_CODENAME=(\w+)$", text, re.M)
    return found[1] if found else ""


def _run(command: list[str], **options) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    if done.returncode != 0:
        raise Unavailable(f"`{' '.join(command)}` failed:\n{done.stderr.strip()}")
    return done.stdout
