"""Defects that cargo-mutants makes up: an operator or a result replaced. Only
its generator is used (`cargo mutants` in the repository runs the same ones):
here they share builds, limits and the report with the patches."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path, PurePosixPath

from . import ROOT, Error, processes
from .patches import Patch, parse

VERSION = "27.1.0"

# Which targets see the changes below a folder; .cargo/mutants.toml says what is
# changed.
TESTS = {
    "bench/src/simulate": ["syrup_bench simulate"],
    "hook/src": ["syrup_hook", "pins"],
    "hook/src/pin.rs": ["syrup_hook", "pins", "net-hooks:socket_select"],
    "protocol/src/request.rs": ["syrup_protocol", "limits"],
    "protocol/src": ["syrup_protocol"],
    "net-hooks/src": ["syrup_net_hooks", "accounting", "net-hooks:socket_select", "adoption"],
    "scx-syrup/src": ["syrup_scx"],
    "engine/src": ["syrup_engine"],
}


def install(place: Path) -> Path:
    """The program, installed below `place` unless the machine has that version."""
    own = place / "tools" / "bin" / "cargo-mutants"
    for program in (str(own), shutil.which("cargo-mutants")):
        if program and Path(program).exists():
            said = subprocess.run([program, "mutants", "--version"], stdout=subprocess.PIPE,
                                  text=True)
            if said.stdout.split() == ["cargo-mutants", VERSION]:
                return Path(program)
    print(f"installing cargo-mutants {VERSION}", flush=True)
    log = place / "install.log"
    with log.open("w") as output:
        status = processes.run(
            ["cargo", "install", "cargo-mutants", "--locked", "--version", VERSION,
             "--root", str(place / "tools")], stdout=output, stderr=output)
    if status != 0:
        raise Error(f"cannot install cargo-mutants {VERSION}: see {log}")
    return own


def sample(place: Path, folder: Path, most: int, seed: int, only: list[str]) -> list[Patch]:
    """At most `most` of them, written to `folder`. Which is drawn by `seed`: the
    same ones for the same tree."""
    listed = subprocess.run(
        [install(place), "mutants", "--list", "--json", "--diff"], cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"}, stdout=subprocess.PIPE, text=True)
    if listed.returncode != 0:
        raise Error("cargo-mutants cannot list its mutants; it said why above")
    mutants = json.loads(listed.stdout)
    if only:
        mutants = [m for m in mutants if any(text in m["name"] for text in only)]
    mutants.sort(key=lambda m: hashlib.sha256(f"{seed} {m['name']}".encode()).digest())
    return [_patch(folder / f"generated-{n:03}.patch", m) for n, m in enumerate(mutants[:most])]


def _patch(path: Path, mutant: dict) -> Patch:
    file = mutant["file"]
    tests = "".join(f"Tests: {line}\n" for line in _tests(file))
    # The second line of its diff holds a description where a name belongs.
    hunks = mutant["diff"].split("\n", 2)[2]
    path.write_text(f"Defect: {mutant['name']}\n{tests}\n--- a/{file}\n+++ b/{file}\n{hunks}")
    return parse(path)


def _tests(file: str) -> list[str]:
    for folder in (PurePosixPath(file), *PurePosixPath(file).parents):
        if str(folder) in TESTS:
            return TESTS[str(folder)]
    raise Error(f".cargo/mutants.toml names {file}, for which generated.TESTS names no tests")
