"""A folder of patches: each one believable defect, and the tests that see it."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from . import Error


@dataclass
class Patch:
    name: str
    path: Path
    defect: str
    # (test target, libtest filters) as the patch names them; empty: derived
    # from the files it touches.
    tests: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    # Paths in the tree.
    files: list[str] = field(default_factory=list)


def read(folder: Path, only: list[str]) -> list[Patch]:
    """The patches of `folder`, in order of their names."""
    if not folder.is_dir():
        raise Error(f"{folder} is no folder of patches")
    paths = sorted(p for p in folder.iterdir() if p.suffix in (".patch", ".diff"))
    if not paths:
        raise Error(f"{folder} holds no file that ends in .patch or .diff")
    patches = [parse(path) for path in paths]
    if only:
        patches = [p for p in patches if any(text in p.name for text in only)]
        if not patches:
            raise Error(f"no patch of {folder} has '{' or '.join(only)}' in its name")
    return patches


def parse(path: Path) -> Patch:
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    start = re.search(r"^(?:diff --git |diff -|Index: |--- )", text, re.MULTILINE)
    if not start:
        raise Error(f"{path}: holds no diff")
    header, diff = text[: start.start()], text[start.start() :]
    patch = Patch(path.stem, path, defect=path.stem)
    for line in header.splitlines():
        key, _, value = line.partition(":")
        if key == "Defect" and value.strip():
            patch.defect = value.strip()
        elif key == "Tests":
            target, *filters = value.split()
            patch.tests.append((target, tuple(filters)))
    patch.files = touched(diff)
    if not patch.files:
        raise Error(f"{path}: its diff names no file")
    return patch


def touched(diff: str) -> list[str]:
    """Files that a diff changes, relative to the root: the `+++` side, or the
    `---` side of one that is deleted."""
    files = []
    for old, new in re.findall(r"^--- (.*)\n\+\+\+ (.*)$", diff, re.MULTILINE):
        names = [strip(side.split("\t")[0].strip()) for side in (new, old)]
        name = next((n for n in names if n), None)
        if name and name not in files:
            files.append(name)
    return files


def strip(name: str) -> str | None:
    """Without the first component, as `patch -p1` reads it."""
    if name == "/dev/null":
        return None
    return name.split("/", 1)[1] if "/" in name else name
