"""From a role to a kernel image in the cache.

Debian's cloud kernels: a plain `vmlinuz` with virtio-fs built in, small. The
archive keeps one or two versions of a kernel and forgets the rest, so a
kernel that was once downloaded stays in the cache and keeps its role until
somebody asks for a new choice."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import Unavailable, btf, cache, debian
from .btf import Verdict


@dataclass(frozen=True)
class Role:
    verdict: Verdict
    suites: tuple[str, ...]
    purpose: str


ROLES = {
    "default": Role(
        Verdict.GOOD,
        ("sid", "experimental", "trixie-backports"),
        "the newest kernel that loads a sched_ext scheduler",
    ),
    "malformed-btf": Role(
        Verdict.MALFORMED,
        ("trixie-backports", "sid", "experimental"),
        "has sched_ext, but BTF that makes it refuse every scheduler",
    ),
    "no-scx": Role(
        Verdict.NO_SCX,
        ("trixie", "bookworm-backports", "bookworm"),
        "built without sched_ext",
    ),
}

# linux-binary is the kernel since 6.19; before, linux-image was.
_NAME = re.compile(r"linux-(binary|image)-(\d.*)-cloud-amd64")


def find(role: str, refresh: bool = False, progress=lambda text: None) -> Path:
    """The kernel image of `role`, downloaded if it is not in the cache."""
    chosen = _root() / "roles" / role
    with cache.exclusive("kernels"):
        if not refresh and (image := _image(_root() / _read(chosen))):
            return image
        kernel = _choose(ROLES[role], progress)
        chosen.parent.mkdir(parents=True, exist_ok=True)
        chosen.write_text(kernel.name, encoding="utf-8")
        return _image(kernel)


def cached() -> list[tuple[str, str, Path]]:
    """(roles, verdict, image) of every kernel in the cache."""
    roles: dict[str, list[str]] = {}
    for name in ROLES:
        roles.setdefault(_read(_root() / "roles" / name), []).append(name)
    return [
        (",".join(roles.get(kernel.name, ["-"])), _read(kernel / "verdict"), image)
        for kernel in sorted(_root().glob("[0-9]*"))
        if (image := _image(kernel))
    ]


def _choose(role: Role, progress) -> Path:
    reasons = []
    for name in role.suites:
        suite = debian.Suite(name)
        progress(f"looking for a kernel in {name}")
        try:
            candidates = _candidates(suite)
            for package, version in candidates:
                kernel = _fetch(suite, package, version, progress)
                verdict = _read(kernel / "verdict")
                if verdict == role.verdict.value:
                    return kernel
                reasons.append(f"{name}: {version} is {verdict or 'no kernel package'}")
            if not candidates:
                reasons.append(f"{name}: no cloud kernel")
        except Unavailable as error:
            reasons.append(f"{name}: {error}")
    raise Unavailable(
        f"no kernel with {role.verdict.value} BTF can be had:\n  " + "\n  ".join(reasons)
    )


def _candidates(suite: debian.Suite) -> list[tuple[str, str]]:
    """(package, version), newest first: of each series (7.2) only the newest,
    since what makes a kernel unfit is not repaired within a series."""
    newest: dict[tuple[int, ...], tuple[tuple[int, ...], str, str]] = {}
    for package in suite.packages("linux-binary-") + suite.packages("linux-image-"):
        if not (match := _NAME.fullmatch(package)):
            continue
        version = match[2]
        number = tuple(int(n) for n in re.findall(r"\d+", version))
        best = newest.get(number[:2])
        # At the same version the first wins: linux-binary, of which
        # linux-image is only an empty wrapper.
        if best is None or number > best[0]:
            newest[number[:2]] = (number, package, version)
    return [(p, v) for _, p, v in sorted(newest.values(), reverse=True)]


def _fetch(suite: debian.Suite, package: str, version: str, progress) -> Path:
    packages = [package]
    # Not in every suite and version; a scheduler alone can do without.
    for part in ("linux-modules", "linux-base"):
        packages += suite.packages(f"{part}-{version}-cloud-amd64")
    kernel = _root() / f"{version}-{suite.sha256(package)[:12]}"
    if (kernel / "verdict").exists():
        return kernel
    with cache.new_folder(kernel) as work:
        for name in packages:
            progress(f"downloading {name} from {suite.name}")
            suite.unpack(name, work)
        # Documentation and reporting scripts.
        shutil.rmtree(work / "usr/share", ignore_errors=True)
        image = _image(work)
        if image:
            _index_modules(work)
        verdict = btf.judge(image).value if image else ""
        (work / "verdict").write_text(verdict, encoding="utf-8")
    return kernel


def _index_modules(root: Path) -> None:
    """Debian runs depmod when a kernel is installed; this one never is."""
    # Packages and versions of kmod differ in whether modules live below /lib
    # or /usr/lib; as on an installed system, both names lead to them.
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    elif not (root / "usr/lib").exists():
        (root / "usr").mkdir(exist_ok=True)
        (root / "usr/lib").symlink_to("../lib")
    for release in (root / "lib/modules").iterdir():
        # Not in an ordinary user's PATH. Warns about lists that some of the
        # packages leave out.
        subprocess.run(
            ["/sbin/depmod", "-b", root, release.name], check=True, stderr=subprocess.DEVNULL
        )


def _image(kernel: Path) -> Path | None:
    for pattern in ("usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz", "boot/vmlinuz-*"):
        for image in kernel.glob(pattern):
            return image
    return None


def _root() -> Path:
    return cache.folder("kernels")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        # No such answer yet. A name that exists nowhere, unlike "", which
        # joined to a folder would be the folder itself.
        return "-"
