"""A copy of the repository in which defects are put and built, one at a time."""

import contextlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import ROOT, Error, processes
from .patches import Patch
from .targets import STARTS, Target, Workspace

# A warning is no test: a defect that merely leaves something unused must be
# seen by what it does. So warnings do not stop the build of a copy.
RELAXED = {
    "Cargo.toml": [('warnings = "deny"', 'warnings = "warn"'),
                   ('missing_docs = "deny"', 'missing_docs = "allow"')],
    "tests/Cargo.toml": [('warnings = "deny"', 'warnings = "warn"'),
                         ('missing_docs = "deny"', 'missing_docs = "allow"')],
    **{name: [('"-Werror"', '"-Wno-error"')] for name in (
        "bench/build.rs", "include/src/compile.rs", "net-hooks/build.rs", "scx-syrup/build.rs")},
}  # fmt: skip

# Tests of packages with programs: Cargo builds a package's programs with its
# integration tests, and tests start those of other packages too.
WITH_PROGRAMS = ("process", "usage")
WITH_BENCH = ("server_and_load",)
PROGRAMS = ("syrupd", "syrupctl", "syrup-bench")
# What C programs of tests are linked with: beside the test binaries, since Cargo puts
# it elsewhere only when it is asked for the library itself.
LIBRARY = "deps/libsyrup.so"


class NotApplicable(Error):
    """A patch that is not about this tree."""


class NotViable(Exception):
    """The compiler refuses the defect."""


@dataclass
class Binary:
    target: Target
    path: Path


class Tree:
    """`path` and its `target` folder are kept: the next run builds only what changed."""

    def __init__(self, path: Path, workspace: Workspace):
        self.path = path
        self.workspace = workspace
        self.touched: set[str] = set()
        # The repository as it was at the start: people go on working in it.
        self.content: dict[str, bytes] = {}

    def prepare(self, content: dict[str, bytes], seed: Path) -> None:
        """Makes the copy hold `content`. A new one starts with what `seed` holds
        of compiled libraries of others. Not of ours: the path of the repository is
        compiled into them, and Cargo does not build them again for another."""
        # Where it lies is compiled in: one that was moved is new too.
        built, origin = self.path / "target", self.path / "target/origin"
        new = not origin.exists() or origin.read_text() != str(self.path)
        if new:
            shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)
        self.content = content
        for name in content:
            self._write(name)
            # Older than what was built from it, as in the repository.
            if new and name not in RELAXED and (ROOT / name).exists():
                shutil.copystat(ROOT / name, self.path / name)
        for path in list(walk(self.path)):
            if path not in self.content:
                (self.path / path).unlink()
        if new:
            built.mkdir()
            if seed.is_dir():
                subprocess.run(["cp", "-a", "--reflink=auto", seed, built / "debug"], check=True)
                ours = [f"--package={name}" for name in self.workspace.folders.values()]
                subprocess.run(["cargo", "clean", "--quiet", *ours], cwd=self.path,
                               env=for_cargo(), check=True)
            # Last: a copy that was not finished is made again.
            origin.write_text(str(self.path))

    def check(self, patch: Patch) -> list[str]:
        """The command that applies it: Git's, or the more forgiving patch(1)."""
        git = ["git", "apply", "--whitespace=nowarn", "--recount"]
        loose = ["patch", "--strip=1", "--batch", "--forward", "--fuzz=2",
                 "--no-backup-if-mismatch", "--silent"]
        said = ""
        for command, trial, source in (
            (git, "--check", str(patch.path)),
            (loose, "--dry-run", f"--input={patch.path}"),
        ):
            ran = self._run([*command, trial, source])
            if ran.returncode == 0:
                return [*command, source]
            said += ran.stdout
        raise NotApplicable(f"{patch.path} does not apply:\n{said.strip()}")

    def apply(self, patch: Patch) -> None:
        command = self.check(patch)
        self.touched |= set(patch.files)
        ran = self._run(command)
        if ran.returncode != 0 or not any(self._differs(name) for name in patch.files):
            raise NotApplicable(f"{patch.path} changes nothing:\n{ran.stdout.strip()}")

    def _run(self, command: list[str]) -> subprocess.CompletedProcess:
        # Git must not find the repository that this copy lies in: it would take
        # paths from there and skip what it holds ignored.
        environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(self.path.parent)}
        return subprocess.run(command, cwd=self.path, env=environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def restore(self) -> None:
        """Takes the defects out again."""
        for name in self.touched:
            if name in self.content:
                self._write(name)
            else:
                (self.path / name).unlink(missing_ok=True)
        self.touched.clear()

    def build(self, targets: list[Target], log: Path, limit_s: float) -> list[Binary]:
        """The binaries of `targets`, with the programs that they start beside them."""
        command = ["cargo", "test", "--no-run", "--locked",
                   "--message-format=json-render-diagnostics", *self._selection(targets)]
        messages = log.with_suffix(".json")
        with log.open("w") as stderr, messages.open("w") as stdout:
            status = processes.run(command, limit_s, cwd=self.path, env=for_cargo(),
                                   stdout=stdout, stderr=stderr)
        if status is None:
            raise Error(f"no build within {limit_s:g} s: see {log}")
        if status != 0:
            raise refusal(log)
        binaries = []
        for line in messages.read_text().splitlines():
            message = json.loads(line)
            if message.get("reason") != "compiler-artifact" or not message.get("executable") \
                    or not message["profile"]["test"]:
                continue
            folder = Path(message["manifest_path"]).parent.relative_to(self.path)
            kind = "test" if "test" in message["target"]["kind"] else "unit"
            package = self.workspace.folders[str(folder)]
            target = Target(str(folder), message["target"]["name"], kind, package)
            if target in targets:
                binaries.append(Binary(target, Path(message["executable"])))
        missing = set(targets) - {b.target for b in binaries}
        if missing:
            raise Error(f"cargo built no {', '.join(map(str, missing))}: see {log}")
        # In the order that was asked for: what most likely sees the defect first.
        return sorted(binaries, key=lambda b: targets.index(b.target))

    def _selection(self, targets: list[Target]) -> list[str]:
        tests = {t.name for t in targets if t.kind == "test"}
        units = ["--lib", "--bins"] if any(t.kind == "unit" for t in targets) else []
        starting = any(t.kind == "test" and t.package in STARTS for t in targets)
        if units and not starting:
            # --workspace would build the unit tests of all users too. All
            # features: code that is left out has no tests.
            packages = ["--all-features",
                        *(f"--package={name}" for name in sorted({t.package for t in targets}))]
        else:
            # With the features that it has for all others, and so is built already.
            packages = ["--workspace"]
            tests |= {*WITH_PROGRAMS, *WITH_BENCH} if starting else set()
        return [*packages, *units, *(f"--test={name}" for name in sorted(tests))]

    def keep(self, binaries: list[Binary], folder: Path) -> list[Binary]:
        """Copies binaries to where the next build does not overwrite them, laid
        out as Cargo does: tests look for programs in the folder above theirs, and
        for the library in their own."""
        (folder / "deps").mkdir(parents=True)
        for name in (*PROGRAMS, LIBRARY):
            if (built := self.path / "target/debug" / name).exists():
                copy(built, folder / name)
        kept = []
        for binary in binaries:
            path = folder / "deps" / binary.path.name
            copy(binary.path, path)
            kept.append(Binary(binary.target, path))
        return kept

    @contextlib.contextmanager
    def with_programs(self, folder: Path):
        """The programs of `folder` stand where Cargo put those of the last build: tests
        of their packages know that place."""
        moved = []
        try:
            for name in PROGRAMS:
                built = self.path / "target/debug" / name
                if built.exists() and (folder / name).exists():
                    built.rename(built.with_suffix(".aside"))
                    moved.append(built)
                    copy(folder / name, built)
            yield
        finally:
            for built in moved:
                built.with_suffix(".aside").replace(built)

    def _write(self, name: str) -> None:
        """What the repository held; only if it differs, for Cargo judges by time."""
        path = self.path / name
        if self._differs(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.content[name])
            path.chmod((ROOT / name).stat().st_mode if (ROOT / name).exists() else 0o644)

    def _differs(self, name: str) -> bool:
        path = self.path / name
        return (path.read_bytes() if path.is_file() else None) != self.content.get(name)


def contents() -> dict[str, bytes]:
    """The repository as it is now, committed or not."""
    return {name: pristine(name) for name in tracked() if not (ROOT / name).is_symlink()}


def pristine(name: str) -> bytes:
    content = (ROOT / name).read_bytes()
    for old, new in RELAXED.get(name, ()):
        if old.encode() not in content:
            raise Error(f"{name} has no {old} any more: see RELAXED in {Path(__file__).name}")
        content = content.replace(old.encode(), new.encode())
    return content


def tracked() -> list[str]:
    answer = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    names = [os.fsdecode(name) for name in answer.split(b"\0") if name]
    return [name for name in names if (ROOT / name).exists() or (ROOT / name).is_symlink()]


def walk(root: Path):
    for folder, folders, files in os.walk(root):
        if Path(folder) == root and "target" in folders:
            folders.remove("target")
        for file in files:
            yield str((Path(folder) / file).relative_to(root))


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--reflink=auto", source, target], check=True)


def for_cargo() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "CARGO_TARGET_DIR"}


# What compilers say of sources: rustc, its linker, and the C compiler within what a
# build script that failed had printed.
REFUSED = [re.compile(text, re.MULTILINE) for text in (
    r"^(error(?:\[E\d+\])?: .+)\n *--> ",
    r"^.*undefined (?:reference|symbol).*",
    r"^ *(\S+:\d+:\d+: (?:fatal )?error: .*)",
)]
# What fails a compiler, and says nothing of what it compiles.
STARVED = re.compile(r"No space left|Cannot allocate memory|out of memory|signal: (?:9|15)\b")


def refusal(log: Path) -> Exception:
    """Why a build failed: a compiler refused the sources, or it could not work."""
    said = log.read_text(errors="replace")
    refused = next(filter(None, (pattern.search(said) for pattern in REFUSED)), None)
    if not refused or STARVED.search(said):
        return Error(f"the build failed, and no compiler refused the sources: see {log}")
    return NotViable(refused[refused.lastindex or 0].strip())
