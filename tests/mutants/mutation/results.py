"""Verdicts, written as they come: an interrupted run can be read, and the next
one of the same tree goes on where it ended."""

import hashlib
import json
from pathlib import Path


class Results:
    """The file holds the verdicts of one tree, whichever runs found them."""

    def __init__(self, path: Path, tree: str):
        self.path = path
        self.tree = tree
        self.verdicts: dict[str, dict] = {}
        try:
            known = json.loads(path.read_text())
            if known["tree"] == tree:
                self.verdicts = {verdict["key"]: verdict for verdict in known["verdicts"]}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # there is none, or it is of another version

    def of(self, key: str) -> dict | None:
        return self.verdicts.get(key)

    def forget(self, key: str) -> None:
        self.verdicts.pop(key, None)

    def add(self, key: str, verdict: dict) -> None:
        self.verdicts[key] = {"key": key, **verdict}
        content = {"tree": self.tree, "verdicts": list(self.verdicts.values())}
        whole = self.path.with_suffix(".new")
        whole.write_text(json.dumps(content, indent=1) + "\n")
        whole.replace(self.path)


def of_tree(content: dict[str, bytes]) -> str:
    """What tells one tree from another: all of its files but the patches here,
    of which a new one changes no verdict of another."""
    told = hashlib.sha256()
    for name in sorted(content):
        if not (name.startswith("tests/mutants/") and name.endswith((".patch", ".diff"))):
            told.update(f"{name}\0{len(content[name])}\0".encode() + content[name])
    return told.hexdigest()


def of_patch(text: bytes, tests: list[str]) -> str:
    """Of a patch and the tests that it is shown to."""
    return hashlib.sha256("\0".join(["", *tests]).encode() + b"\0" + text).hexdigest()
