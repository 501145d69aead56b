"""Test targets: where they run, and which of them can see a change of a file."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import PurePosixPath

from . import ROOT, Error

sys.path.append(str(ROOT / "tests"))
from runner import plan  # noqa: E402

# Packages whose tests start programs of other packages, which Cargo does not know.
STARTS = {
    "syrup": ("syrupd", "syrupctl"),
    "syrupctl": ("syrupd",),
    "syrupd": ("syrupctl",),
    "syrup-tests": ("syrupd", "syrupctl", "syrup", "syrup-bench"),
}


# The kernel's half of the thread hook: nothing native ever runs it.
GUEST_ONLY = re.compile(r"scx-syrup/(src/.*\.bpf\.[ch]|policies/.*\.c)")


@dataclass(frozen=True, order=True)
class Target:
    folder: str  # of its package
    name: str
    kind: str  # "unit" or "test"
    package: str

    def __str__(self):
        return f"{self.folder}:{self.name}" if self.kind == "test" else f"{self.folder} (unit)"

    @property
    def guests(self) -> list[tuple[plan.Guest, str]]:
        """The guests that it runs in, and how the names of the tests start that
        each of them is for: one guest for the same tests, whatever kernels
        there are. None: it runs natively."""
        if self.kind != "test":
            return []
        found = {}
        for guest in plan.GUESTS:
            for spec in guest.tests:
                name, _, start = spec.partition("::")
                if name == f"{self.package}/{self.name}":
                    found.setdefault(start, guest)
        return [(guest, start) for start, guest in found.items()]


class Workspace:
    def __init__(self):
        answer = subprocess.run(
            ["cargo", "metadata", "--format-version", "1", "--no-deps"],
            cwd=ROOT, stdout=subprocess.PIPE, check=True)  # fmt: skip
        packages = json.loads(answer.stdout)["packages"]
        names = {package["name"] for package in packages}
        self.folders: dict[str, str] = {}
        self.targets = {}
        # What a package is built from, and what its tests need beside that.
        self.uses, self.tests_use = {}, {}
        for package in packages:
            name = package["name"]
            folder = PurePosixPath(package["manifest_path"]).parent.relative_to(ROOT)
            self.folders[str(folder)] = name
            needs = [d for d in package["dependencies"] if d["name"] in names]
            self.uses[name] = {d["name"] for d in needs if d["kind"] != "dev"}
            self.tests_use[name] = {d["name"] for d in needs} | set(STARTS.get(name, ()))
            self.targets[name] = [
                Target(str(folder), target["name"],
                       "test" if "test" in target["kind"] else "unit", name)
                for target in package["targets"]
                if target["test"] and not {"custom-build", "example"} & set(target["kind"])
            ]

    def all(self):
        return [target for targets in self.targets.values() for target in targets]

    def named(self, name: str) -> list[Target]:
        """Targets of that name; FOLDER:NAME or PACKAGE/NAME where several have it."""
        place, last = re.fullmatch(r"(?:(.*)[:/])?(.*)", name).groups()
        found = [t for t in self.all()
                 if t.name == last and place in (None, t.folder, t.package)]
        if not found:
            raise Error(
                f"there is no test target '{name}'; there are: "
                + ", ".join(sorted({t.name for t in self.all()}))
            )
        return list(dict.fromkeys(found))

    def seeing(self, files: list[str]) -> list[Target]:
        """Targets that a change of `files` can turn red: those of their own
        packages first, then of the packages that use these; guests last."""
        level = {self.package(file) for file in files}
        seen, order = set(), []
        while level:
            seen |= level
            order += sorted(level)
            level = {user for user in self.uses if self.uses[user] & level} - seen
        order += sorted(user for user in self.tests_use
                        if user not in seen and self.tests_use[user] & seen)
        found = [t for name in order for t in sorted(
            self.targets[name], key=lambda t: (t.kind != "unit", t))]
        if all(GUEST_ONLY.fullmatch(file) for file in files):
            own = self.package(files[0])
            found = [t for t in found if t.guests or t in self.targets[own]]
        return sorted(dict.fromkeys(found), key=lambda t: bool(t.guests))

    def package(self, file: str) -> str:
        name = self.folders.get(PurePosixPath(file).parts[0])
        if name is None:
            raise Error(f"{file} belongs to no package: no test target is built from it")
        return name
