"""From a role, or a path, to a kernel image.

The kernel of a role is locked: vm/kernels.lock names its packages with their
hashes, so that all who work on the project mean the same. Debian's cloud
kernels: a plain `vmlinuz` with virtio-fs built in, small.

The archive forgets kernels. What was once downloaded stays in the cache; where
a locked one cannot be had any more, another is chosen as it was: by what its
type information says."""

import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from . import Error, Unavailable, btf, cache, debian
from .btf import Verdict
from .debian import Package


@dataclass(frozen=True)
class Role:
    verdict: Verdict
    suites: tuple[str, ...]
    purpose: str
    oldest: bool = False
    # The first version that counts.
    since: tuple[int, ...] = (0,)


_DEVELOPED = ("sid", "experimental", "trixie-backports")

ROLES = {
    "newest": Role(
        Verdict.GOOD, _DEVELOPED, "the newest that loads a sched_ext scheduler"
    ),
    "oldest": Role(
        # Before 7.0 nothing keeps ordinary threads from starving sched_ext's.
        Verdict.GOOD, _DEVELOPED, "the oldest that the thread hook supports",
        oldest=True, since=(7, 0),
    ),
    "malformed-btf": Role(
        Verdict.MALFORMED, _DEVELOPED,
        "has sched_ext, but BTF that makes it refuse every scheduler",
    ),
    "no-scx": Role(
        Verdict.NO_SCX, ("trixie", "bookworm-backports", "bookworm"), "built without sched_ext"
    ),
}  # fmt: skip
ALIASES = {"default": "newest"}

LOCK = Path(__file__).resolve().parent.parent / "kernels.lock"

# A kernel that was taken instead of the locked one is that long good enough;
# then the archive is asked for the locked one again.
_INSTEAD_S = 24 * 3600

# linux-binary is the kernel since 6.19; before, linux-image was.
_NAME = re.compile(r"linux-(binary|image)-(\d.*)-cloud-amd64")


@dataclass(frozen=True)
class Kernel:
    # What virtme-ng is given: an image, or the folder of a built kernel.
    path: Path
    name: str
    release: str
    # What people should know about the choice.
    note: str = ""


@dataclass(frozen=True)
class Locked:
    version: str
    suite: str
    packages: tuple[Package, ...]

    def key(self) -> str:
        """Its folder in the cache."""
        return f"{self.version}-{self.packages[0].sha256[:12]}"


def find(name: str, progress=lambda text: None) -> Kernel:
    """The kernel of a role, downloaded if it is not in the cache; `host`: the one
    that runs here; or a path."""
    name = ALIASES.get(name, name)
    if name in ROLES:
        return _of_role(name, progress)
    return _of_path(name)


def refresh(role: str, progress=lambda text: None) -> Kernel:
    """Chooses anew and locks the choice."""
    role = ALIASES.get(role, role)
    with cache.exclusive("kernels"):
        chosen = _choose(ROLES[role], progress)
        locked = read_lock(LOCK)
        locked[role] = chosen
        write_lock(LOCK, locked)
        return _cached(role, chosen.key())


def cached() -> list[tuple[str, str, Path]]:
    """(roles, verdict, image) of every kernel in the cache."""
    locked = {role: choice.key() for role, choice in read_lock(LOCK).items()}
    return [
        (",".join(role for role, key in locked.items() if key == folder.name) or "-",
         _read(folder / "verdict"), image)
        for folder in sorted(_root().glob("[0-9]*"))
        if (image := _image(folder))
    ]  # fmt: skip


def read_lock(path: Path) -> dict[str, Locked]:
    try:
        roles = json.loads(path.read_text(encoding="utf-8"))
        return {
            role: Locked(
                entry["kernel"], entry["suite"], tuple(Package(**p) for p in entry["packages"])
            )
            for role, entry in roles.items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise Error(f"{path} cannot be read ({error!r}): restore it from git") from error


def write_lock(path: Path, locked: dict[str, Locked]) -> None:
    roles = {
        role: {"kernel": choice.version, "suite": choice.suite,
               "packages": [asdict(p) for p in choice.packages]}
        for role, choice in sorted(locked.items())
    }  # fmt: skip
    new = path.with_suffix(".new")
    new.write_text(json.dumps(roles, indent=2) + "\n", encoding="utf-8")
    new.rename(path)


def _of_role(role: str, progress) -> Kernel:
    locked = read_lock(LOCK).get(role)
    with cache.exclusive("kernels"):
        if locked:
            if _image(_root() / locked.key()):
                return _cached(role, locked.key())
            if instead := _instead(role, locked):
                return instead
            try:
                _fetch(locked, progress)
                return _cached(role, locked.key())
            except Unavailable as error:
                reason = str(error)
        else:
            reason = "no kernel is locked for it"
        progress(f"role {role}: {reason}\nlooking for another one")
        chosen = _choose(ROLES[role], progress)
        if locked:
            _remember(role, locked, chosen)
            return _instead(role, locked)
        return _cached(role, chosen.key())


def _instead(role: str, locked: Locked) -> Kernel | None:
    """The kernel that was taken for the locked one not long ago."""
    try:
        known = json.loads((_root() / "instead" / role).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    fresh = time.time() - known["since"] < _INSTEAD_S
    if known["locked"] != locked.key() or not fresh or not _image(_root() / known["key"]):
        return None
    return _cached(role, known["key"], (
        f"NOT THE LOCKED KERNEL: {locked.version} of role {role} is not in the archive any more, "
        f"{known['version']} does its part. `vm/kernel --refresh {role}` locks a new one; a "
        "snapshot of the archive (SYRUP_DEBIAN_MIRROR) still has the old one"
    ))  # fmt: skip


def _remember(role: str, locked: Locked, chosen: Locked) -> None:
    path = _root() / "instead" / role
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"locked": locked.key(), "key": chosen.key(), "version": chosen.version, "since": time.time()}
    path.write_text(json.dumps(known), encoding="utf-8")


def _cached(role: str, key: str, note: str = "") -> Kernel:
    folder = _root() / key
    verdict, wanted = _read(folder / "verdict"), ROLES[role].verdict.value
    if verdict != wanted:
        raise Error(f"the kernel locked for role {role}, {key}, is {verdict}, not {wanted}: "
                    f"`vm/kernel --refresh {role}`")  # fmt: skip
    image = _image(folder)
    return Kernel(image, role, btf.release(image), note)


def _of_path(name: str) -> Kernel:
    if name == "host":
        release = os.uname().release
        places = [Path(f"/lib/modules/{release}/vmlinuz"), Path(f"/boot/vmlinuz-{release}")]
        path = next((place for place in places if place.exists()), None)
        if not path:
            raise Error(f"the image of this machine's kernel is neither {places[0]} nor {places[1]}: "
                        "name its path")  # fmt: skip
    else:
        path = Path(name).absolute()
        if not path.exists():
            roles = ", ".join([*ROLES, *ALIASES])
            raise Error(f"--kernel {name}: neither a role ({roles}), nor `host`, nor a file")
    image = path
    if path.is_dir() or path.name == "vmlinux" and (path.parent / ".config").exists():
        # A built tree: with its modules, where there are any.
        path = path if path.is_dir() else path.parent
        image = path / "arch/x86/boot/bzImage"
        if not image.exists() or not (path / ".config").exists():
            raise Error(f"{path} is no built x86 kernel: no .config, or no arch/x86/boot/bzImage "
                        "(`make bzImage`)")  # fmt: skip
    if not os.access(image, os.R_OK):
        raise Error(f"{image} may not be read by you: copy it, or change its mode")
    return Kernel(path, name, btf.release(image))


def _choose(role: Role, progress) -> Locked:
    reasons = []
    candidates = []
    for name in role.suites:
        suite = debian.Suite(name)
        progress(f"looking for a kernel in {name}")
        try:
            candidates += [(number, suite, package, version)
                           for number, package, version in _candidates(suite)
                           if number >= role.since]  # fmt: skip
        except Unavailable as error:
            reasons.append(f"{name}: {error}")
    candidates.sort(key=lambda candidate: candidate[0], reverse=not role.oldest)
    for _, suite, package, version in candidates:
        try:
            locked = _packages(suite, package, version)
            verdict = _fetch(locked, progress)
        except Error as error:
            reasons.append(f"{suite.name}: {version}: {error}")
            continue
        if verdict == role.verdict.value:
            return locked
        reasons.append(f"{suite.name}: {version} is {verdict or 'no kernel package'}")
    raise Unavailable(
        f"no kernel with {role.verdict.value} BTF can be had:\n  "
        + "\n  ".join(reasons or ["no cloud kernel in " + ", ".join(role.suites)])
    )


def _candidates(suite: debian.Suite) -> list[tuple[tuple[int, ...], str, str]]:
    """(number, package, version), newest first: of each series (7.2) only the
    newest, since what makes a kernel unfit is not repaired within a series."""
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
    return sorted(newest.values(), reverse=True)


def _packages(suite: debian.Suite, package: str, version: str) -> Locked:
    names = [package]
    # Not in every suite and version; a scheduler alone can do without.
    for part in ("linux-modules", "linux-base"):
        names += suite.packages(f"{part}-{version}-cloud-amd64")
    return Locked(version, suite.name, tuple(suite.package(name) for name in names))


def _fetch(locked: Locked, progress) -> str:
    """Downloads the kernel, unless it is in the cache: what its BTF says."""
    kernel = _root() / locked.key()
    if not (kernel / "verdict").exists():
        with cache.new_folder(kernel) as work:
            for package in locked.packages:
                progress(f"downloading {package.name} {package.version}")
                package.unpack(work)
            # Documentation and reporting scripts.
            shutil.rmtree(work / "usr/share", ignore_errors=True)
            image = _image(work)
            if image:
                _index_modules(work)
            verdict = btf.judge(image).value if image else ""
            (work / "verdict").write_text(verdict, encoding="utf-8")
    return _read(kernel / "verdict")


def _index_modules(root: Path) -> None:
    """Debian runs depmod when a kernel is installed; this one never is."""
    # Packages and versions of kmod differ in whether modules live below /lib
    # or /usr/lib; as on an installed system, both names lead to them.
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    elif not (root / "usr/lib").exists():
        (root / "usr").mkdir(exist_ok=True)
        (root / "usr/lib").symlink_to("../lib")
    modules = root / "lib/modules"
    for folder in modules.iterdir() if modules.exists() else ():
        # Not in an ordinary user's PATH. Warns about lists that some of the
        # packages leave out.
        subprocess.run(
            ["/sbin/depmod", "-b", root, folder.name], check=True, stderr=subprocess.DEVNULL
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
        return ""
