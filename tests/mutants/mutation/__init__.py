"""Small defects, put into a copy of the tree one at a time, to see whether a
test notices."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


class Error(Exception):
    """What makes the whole run worthless, with what to do about it."""
