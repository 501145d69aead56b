"""Runs the tests: `tests/run`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
