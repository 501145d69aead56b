"""All defects: build each, run what can see it, and tell who noticed."""

import fcntl
import queue
import shutil
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from . import ROOT, Error, guest, native, processes
from .patches import Patch
from .results import Results, of_patch, of_tree
from .targets import Target, Workspace
from .tree import Binary, NotViable, Tree, contents

OURS = ROOT / "tests" / "mutants"
PLACE = ROOT / "target" / "mutants"
BUILD_LIMIT_S = 900
# A test binary may take this long and several times what it takes without a
# defect: the machine may have become busy.
AT_LEAST_S = 30
# Without a baseline to go by.
BASELINE_LIMIT_S = 600

BASELINE = "baseline"


@dataclass
class Variant:
    patch: Patch | None  # None: the tree as it is
    tests: list[tuple[Target, tuple[str, ...]]]
    caught: str = ""
    refused: str = ""
    # What was red once and then green: no catch, and not green either.
    unsteady: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    entries: list[tuple[tuple, guest.Entry]] = field(default_factory=list)
    open: int = 0  # entries without an outcome
    reported: bool = False

    @property
    def name(self):
        return self.patch.name if self.patch else BASELINE

    @property
    def key(self) -> str:
        asked = [" ".join([str(target), *filters]) for target, filters in self.tests]
        return of_patch(self.patch.path.read_bytes(), asked)

    @property
    def verdict(self) -> tuple[str, str]:
        """The word for it, and who says so."""
        if self.refused:
            return "refused", self.refused
        if self.caught:
            return "caught", self.caught
        if self.unsteady:
            return "unsteady", ", ".join(self.unsteady)
        return "survived", self.patch.defect

    def told(self) -> dict:
        verdict, by = self.verdict
        return {"patch": str(self.patch.path), "defect": self.patch.defect, "verdict": verdict,
                "by": "" if verdict == "survived" else by, "unsteady": self.unsteady,
                "ran": self.ran}

    def take(self, told: dict) -> None:
        """The verdict of an earlier run."""
        self.ran, self.unsteady = told["ran"], told["unsteady"]
        self.refused = told["by"] if told["verdict"] == "refused" else ""
        self.caught = told["by"] if told["verdict"] == "caught" else ""
        self.reported = True


def claim():
    """The place that a run builds in is one run's: keep what this returns."""
    PLACE.mkdir(parents=True, exist_ok=True)
    lock = (PLACE / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Error(f"another run uses {PLACE}: let it end first") from None
    return lock


class Campaign:
    def __init__(self, patches: list[Patch], native_only: bool, builders: int,
                 fresh: bool = False):
        self.workspace = Workspace()
        self.fresh = fresh
        self.native_only = native_only
        self.nr_builders = builders
        self.variants = [Variant(patch, self._tests(patch)) for patch in patches]
        # Those of them that have no verdict yet.
        self.left: list[Variant] = []
        self.baseline: Variant | None = None
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.errors: list[str] = []
        # Seconds of (target, filters) without a defect.
        self.usual: dict[tuple, float] = {}
        # The binaries without a defect, by file name.
        self.controls: dict[str, Binary] = {}
        self.finished = 0

    def _tests(self, patch: Patch):
        if patch.tests:
            tests = [(t, filters) for name, filters in patch.tests
                     for t in self.workspace.named(name)]
        else:
            tests = [(t, ()) for t in self.workspace.seeing(patch.files)]
        tests = [(t, f) for t, f in tests if not (self.native_only and t.guests)]
        return list(dict.fromkeys(tests))

    def show(self) -> None:
        for variant in self.variants:
            print(f"{variant.name}: {variant.patch.defect}")
            for target, filters in variant.tests:
                where = "in a guest" if target.guests else "natively"
                print(f"  {' '.join([str(target), *filters])}, {where}")
        print(f"{len(self.variants)} patches")

    def run(self) -> None:
        self.started = time.monotonic()
        content = contents()
        self._go_on(Results(PLACE / "results.json", of_tree(content)))
        every = {test: None for v in self.left for test in v.tests}
        self.baseline = baseline = Variant(None, list(every))
        say(f"{len(self.left)} patches, {len({t for t, _ in every})} test targets")
        trees = [Tree(PLACE / f"tree-{n}", self.workspace)
                 for n in range(min(self.nr_builders, len(self.left)))]
        seed = ROOT / "target" / "debug"
        for tree in trees:
            tree.prepare(content, seed)
        for variant in self.left:
            trees[0].check(variant.patch)
        if self.left:
            self._builders(trees, baseline)
            self._guests(baseline)
        if lost := [variant.name for variant in self.left if not variant.reported]:
            raise Error(f"no verdict on {', '.join(lost)}")
        self._summary()

    def _go_on(self, results: Results) -> None:
        """Leaves out what has a verdict; what it was found by stays to be read."""
        self.results = results
        for variant in self.variants:
            if self.fresh:
                results.forget(variant.key)
            elif told := results.of(variant.key):
                variant.take(told)
        self.left = [v for v in self.variants if not v.reported]
        if nr_known := len(self.variants) - len(self.left):
            say(f"{nr_known} have a verdict from an earlier run of this tree (--fresh: anew)")
        gone = ["variants", *(f"log/{v.name}" for v in self.left), f"log/{BASELINE}"]
        if not results.verdicts:
            gone += ["log", "machines"]
        for name in gone:
            shutil.rmtree(PLACE / name, ignore_errors=True)
        (PLACE / "log").mkdir(parents=True, exist_ok=True)

    def count(self, patches: list[Patch]) -> tuple[int, int]:
        """How many of them were caught, and how many the compiler took."""
        viable = [v for v in self.variants if v.patch in patches and not v.refused]
        return sum(bool(v.caught) for v in viable), len(viable)

    def rotten(self) -> list[Patch]:
        """Those of this repository that the compiler refused: they test nothing any more."""
        return [v.patch for v in self.variants if v.refused and v.patch.path.parent == OURS]

    def unsteady(self) -> list[str]:
        """Tests that were red and then green without any defect."""
        return self.baseline.unsteady if self.baseline else []

    # Building, and what runs natively.

    def _builders(self, trees: list[Tree], baseline: Variant) -> None:
        work = queue.Queue()
        # Neighbours touch the same packages, so that less is built anew.
        for variant in sorted(self.left, key=lambda v: (sorted(v.patch.files), v.name)):
            work.put(variant)
        green = threading.Event()

        def builder(tree: Tree, first: bool):
            try:
                if first:
                    self._native(tree, baseline)
                    if not self.errors:
                        green.set()
                else:
                    # Warm while the baseline runs, whose times are the limits.
                    tree.build([t for t, _ in baseline.tests], self._log(tree.path.name, "build"),
                               BUILD_LIMIT_S)
                    while not green.wait(0.5) and not self.stop.is_set():
                        pass
                while not self.stop.is_set():
                    self._native(tree, work.get_nowait())
            except queue.Empty:
                tree.restore()
            except processes.Interrupted:
                pass
            except Exception as error:
                self._fail(error)

        threads = [threading.Thread(target=builder, args=(tree, n == 0), daemon=True)
                   for n, tree in enumerate(trees)]
        for thread in threads:
            thread.start()
        self._join(threads)

    def _native(self, tree: Tree, variant: Variant) -> None:
        tree.restore()
        if variant.patch:
            tree.apply(variant.patch)
        targets = list(dict.fromkeys(t for t, _ in variant.tests))
        started = time.monotonic()
        try:
            binaries = tree.build(targets, self._log(variant.name, "build"), BUILD_LIMIT_S)
        except NotViable as refused:
            if not variant.patch:
                raise Error(f"the tree does not build without a defect: {refused}") from None
            variant.refused = str(refused)
            self._report(variant)
            return
        built_s = time.monotonic() - started
        by_target = {}
        for binary in binaries:
            by_target.setdefault(binary.target, []).append(binary)
        if not variant.patch:
            check_filters(variant.tests, by_target)
            kept = tree.keep(binaries, PLACE / "variants" / BASELINE / "debug")
            self.controls = {binary.path.name: binary for binary in kept}
        for target, filters in variant.tests:
            if target.guests or variant.caught or self.stop.is_set():
                continue
            for binary in by_target[target]:
                log = self._log(variant.name, f"{target.folder}-{binary.path.name}")
                before = time.monotonic()
                outcome = native.run(binary, filters, tree.path, log,
                                     self._limit(target, filters))
                if outcome.red and variant.patch:
                    # Tests read files of the tree.
                    tree.restore()
                    self._control(binary, outcome, tree, log, target, filters)
                self._outcome(variant, target, filters, outcome, time.monotonic() - before)
        if any(t.guests for t in targets) and not variant.caught:
            # Before the next defect is built over them.
            if variant.patch:
                kept = tree.keep([b for b in binaries if b.target.guests],
                                 PLACE / "variants" / variant.name / "debug")
            self._queue(variant, kept)
        say(f"  built {variant.name} in {built_s:.0f} s", quiet=variant.patch is not None)
        self._report(variant)

    def _control(self, binary, outcome, tree: Tree, log: Path, target, filters) -> None:
        """What is red without the defect as well is not its doing: a disk that is full, a
        machine that has become too slow."""
        control = self.controls.get(binary.path.name)
        if not control:
            return
        with tree.with_programs(control.path.parent.parent):
            without = native.run(control, outcome.selection, tree.path,
                                 log.with_suffix(".control.log"), self._limit(target, filters))
        if without.red:
            raise Error(f"red without any defect by now: {target}: {without.red}")

    # Guests.

    def _queue(self, variant: Variant, binaries) -> None:
        for target, filters in variant.tests:
            for machine, start in target.guests:
                for binary in binaries:
                    if binary.target != target:
                        continue
                    chosen = tuple(f for f in filters if f.startswith(start)) or (
                        (start,) if start else filters)
                    control = self.controls.get(binary.path.name) if variant.patch else None
                    entry = guest.Entry(variant.name, binary, chosen, 0, control)
                    variant.entries.append(((machine, target, filters), entry))
                    variant.open += 1

    def _guests(self, baseline: Variant) -> None:
        kinds = {}
        for variant in [baseline, *self.left]:
            for (machine, target, filters), entry in variant.entries:
                kinds.setdefault(machine, []).append((variant, target, filters, entry))
        if not kinds:
            return
        say(f"guests: {sum(map(len, kinds.values()))} test binaries, {len(kinds)} kinds of machine")
        for machine, waiting in kinds.items():
            # Without a defect first: the rest depends on it, and on its times.
            first = [w for w in waiting if w[0] is baseline]
            rest = [w for w in waiting if w[0] is not baseline]
            self._machine(machine, first, "baseline")
            if self.errors:
                raise Error(self.errors[0])
            # One that counts instructions has one thread, whatever its CPUs.
            at_a_time = 2 if machine.icount else 1
            threads = [
                threading.Thread(target=self._machine, args=(machine, rest[n::at_a_time], str(n)),
                                 daemon=True)
                for n in range(at_a_time) if rest[n::at_a_time]
            ]  # fmt: skip
            for thread in threads:
                thread.start()
            self._join(threads)

    def _machine(self, machine, waiting, name: str) -> None:
        if not waiting:
            return
        of = {}
        for variant, target, filters, entry in waiting:
            entry.limit_s = self._limit(target, filters)
            of[id(entry)] = (variant, target, filters)

        def done(entry):
            variant, target, filters = of[id(entry)]
            with self.lock:
                variant.open -= 1
            if not entry.outcome.skipped:
                self._outcome(variant, target, filters, entry.outcome, entry.seconds)
            self._report(variant)

        try:
            guest.run([w[3] for w in waiting], machine,
                      PLACE / "machines" / f"{machine.name}-{name}", done)
        except processes.Interrupted:
            pass
        except Exception as error:
            self._fail(error)

    # Outcomes.

    def _limit(self, target: Target, filters) -> float:
        usual = self.usual.get((target, filters))
        return BASELINE_LIMIT_S if usual is None else AT_LEAST_S + 5 * usual

    def _outcome(self, variant, target, filters, outcome, seconds) -> None:
        what = " ".join([str(target), *filters])
        variant.ran.append(what)
        if outcome.unsteady:
            variant.unsteady.append(f"{target}: {outcome.unsteady}")
        if not variant.patch:
            if outcome.red:
                self._fail(Error(f"red without any defect: {what}: {outcome.red}"))
            self.usual[target, filters] = self.usual.get((target, filters), 0) + seconds
        elif outcome.red and not variant.caught:
            variant.caught = f"{target}: {outcome.red}"

    def _report(self, variant: Variant) -> None:
        if not variant.patch:
            return
        with self.lock:
            if variant.reported or (variant.open and not variant.caught):
                return
            # A run that stops leaves tests out: what they would say is not known.
            if self.stop.is_set() and not (variant.caught or variant.refused):
                return
            variant.reported = True
            self.results.add(variant.key, variant.told())
            self.finished += 1
            verdict, who = variant.verdict
            verdict = {"survived": "SURVIVED", "unsteady": "UNSTEADY"}.get(verdict, verdict)
            spent = time.monotonic() - self.started
            left = spent / self.finished * (len(self.left) - self.finished)
            say(f"[{self.finished:2}/{len(self.left)}] {verdict:8} {variant.name}: {who}"
                f"  ({spent / 60:.0f} min, some {left / 60:.0f} left)")

    def _summary(self) -> None:
        for variant in self.variants:
            verdict, who = variant.verdict
            if verdict == "survived":
                say(f"survived: {variant.name}: {who}")
                ran = ", ".join(variant.ran) or "no test that could see it ran"
                say(f"  green with it: {ran}")
            elif verdict == "refused":
                say(f"not viable: {variant.name}: {who}")
        for variant in [self.baseline, *self.variants]:
            if variant.unsteady:
                say(f"unsteady: {variant.name}: red once, then green: "
                    + ", ".join(variant.unsteady))
        shutil.rmtree(PLACE / "variants", ignore_errors=True)

    def _fail(self, error: Exception) -> None:
        """The whole run says nothing any more."""
        if not isinstance(error, Error):
            traceback.print_exception(error)
        with self.lock:
            self.errors.append(str(error) or repr(error))
        self.stop.set()

    def _join(self, threads) -> None:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)  # so that Ctrl-C comes through
        if self.errors:
            raise Error(self.errors[0])

    def _log(self, variant: str, what: str) -> Path:
        folder = PLACE / "log" / variant
        folder.mkdir(exist_ok=True)
        return folder / f"{what}.log"


def check_filters(tests, by_target) -> None:
    """A Tests line may name targets of several packages: one of them has the test."""
    named = {}
    for target, filters in tests:
        named.setdefault((target.name, filters), []).extend(by_target[target])
    for (name, filters), binaries in named.items():
        for text in native.selecting_nothing(binaries, filters):
            raise Error(f"'{name} {text}' selects no test: see the Tests lines")


def say(text: str, quiet: bool = False) -> None:
    if not quiet:
        print(text, flush=True)
