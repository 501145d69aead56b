#!/usr/bin/env python3
"""Tests of `run` that build nothing."""

import contextlib
import io
import json
import runpy
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from mutation import Error, campaign, guest, native, patches, processes, results, targets, tree

DIFF = """\
--- a/engine/src/maps.rs\t2026-01-01
+++ b/engine/src/maps.rs\t2026-01-02
@@ -1 +1 @@
-a
+b
"""


class Patches(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def parse(self, text: str, name="p.patch"):
        path = self.folder / name
        path.write_text(text)
        return patches.parse(path)

    def test_a_header_names_the_defect_and_the_tests(self):
        patch = self.parse(f"Defect: two of: them\nTests: daemon a b\nTests: limits\n\n{DIFF}")
        self.assertEqual(patch.defect, "two of: them")
        self.assertEqual(patch.tests, [("daemon", ("a", "b")), ("limits", ())])
        self.assertEqual(patch.files, ["engine/src/maps.rs"])

    def test_a_bare_diff_is_enough(self):
        for head in ("", "diff --git a/x b/x\nindex 1..2 100644\n", "diff -u old/x new/x\n"):
            patch = self.parse(head + DIFF)
            self.assertEqual((patch.defect, patch.tests), ("p", []))
            self.assertEqual(patch.files, ["engine/src/maps.rs"])

    def test_files_that_come_or_go_are_named(self):
        self.assertEqual(patches.touched("--- /dev/null\n+++ b/x/y\n--- a/z\n+++ /dev/null\n"),
                         ["x/y", "z"])

    def test_what_is_no_patch_is_an_error_that_names_it(self):
        for text in ("", "Defect: none\n", "diff --git a/x b/x\n"):
            with self.assertRaisesRegex(Error, "p.patch"):
                self.parse(text)
        with self.assertRaisesRegex(Error, "holds no file"):
            patches.read(self.empty(), [])
        with self.assertRaisesRegex(Error, "no folder"):
            patches.read(self.folder / "absent", [])

    def empty(self):
        folder = self.folder / "empty"
        folder.mkdir()
        return folder

    def test_of_this_repository_that_the_compiler_refuses_are_rotten(self):
        ours = Path(__file__).parent / "turn-not-kept.patch"
        theirs = self.folder / "p.patch"
        theirs.write_text(ours.read_text())
        found = [patches.parse(path) for path in (ours, theirs)]
        run = campaign.Campaign(found, native_only=False, builders=1)
        self.assertEqual(run.rotten(), [])
        for variant in run.variants:
            variant.refused = "error: no"
        self.assertEqual(run.rotten(), found[:1])
        self.assertEqual(run.count(found), (0, 0))

    def test_those_of_this_repository_apply_and_name_tests(self):
        workspace = targets.Workspace()
        here = tree.Tree(Path(__file__).resolve().parents[2], workspace)
        for patch in patches.read(Path(__file__).parent, []):
            with self.subTest(patch.name):
                self.assertNotEqual(patch.defect, patch.name)
                self.assertTrue(patch.tests)
                for name, _ in patch.tests:
                    workspace.named(name)
                here.check(patch)


class Targets(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workspace = targets.Workspace()

    def seeing(self, *files):
        return [str(target) for target in self.workspace.seeing(list(files))]

    def test_a_packages_own_tests_come_first_and_guests_last(self):
        seen = self.seeing("hook/src/pin.rs")
        self.assertEqual(seen[0], "hook (unit)")
        self.assertLess(seen.index("hook:pins"), seen.index("net-hooks:socket_select"))
        self.assertLess(seen.index("net-hooks:socket_select"), seen.index("syrupd:daemon"))
        self.assertLess(seen.index("tests:refusals"), seen.index("scx-syrup:thread_hook"))

    def test_tests_that_start_a_program_see_its_changes(self):
        seen = self.seeing("engine/src/engine.rs")
        for target in ("syrup:c_api", "syrupctl:deploy", "tests:socket_select", "syrupd:engine"):
            self.assertIn(target, seen)
        # Hooks' tests link policies as the engine does.
        self.assertIn("net-hooks:socket_select", seen)
        self.assertNotIn("hook:pins", seen)

    def test_the_kernels_half_of_the_thread_hook_is_seen_in_guests_only(self):
        seen = self.seeing("scx-syrup/src/bpf/root.bpf.c")
        self.assertEqual(seen[0], "scx-syrup (unit)")
        self.assertNotIn("syrupd:daemon", seen)
        self.assertIn("tests:thread_hook", seen)
        both = self.seeing("scx-syrup/src/bpf/root.bpf.c", "scx-syrup/src/root.rs")
        self.assertIn("syrupd:daemon", both)

    def test_what_no_test_is_built_from_is_an_error(self):
        with self.assertRaisesRegex(Error, "docs/x.md"):
            self.seeing("docs/x.md")

    def test_names_may_be_shared(self):
        self.assertEqual(len(self.workspace.named("daemon")), 2)
        self.assertEqual(len(self.workspace.named("syrupctl:daemon")), 1)
        with self.assertRaisesRegex(Error, "no test target 'demon'"):
            self.workspace.named("demon")


class Trees(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_binaries_of_guests_are_kept_with_all_that_they_look_for(self):
        # As CProgram and binary() of syrup-tests do: beside the test, and a folder above.
        built = self.folder / "tree/target/debug"
        (built / "deps").mkdir(parents=True)
        names = ["deps/cross_layer-1a", "deps/libsyrup.so", "syrupd", "syrupctl"]
        for name in names:
            (built / name).write_text(name)
        kept = tree.Tree(self.folder / "tree", None).keep(
            [tree.Binary(None, built / names[0])], self.folder / "kept")
        self.assertEqual([binary.path for binary in kept], [self.folder / "kept" / names[0]])
        for name in names:
            self.assertEqual((self.folder / "kept" / name).read_text(), name)


    def test_a_control_starts_programs_without_the_defect(self):
        built, kept = self.folder / "tree/target/debug", self.folder / "kept"
        for folder, text in (built, "defect"), (kept, "none"):
            folder.mkdir(parents=True)
            (folder / "syrupd").write_text(text)
        (kept / "syrupctl").touch()
        seen = lambda: [(built / "syrupd").stat()[field] for field in (stat.ST_INO, stat.ST_MTIME)]
        before = seen()
        with tree.Tree(self.folder / "tree", None).with_programs(kept):
            self.assertEqual((built / "syrupd").read_text(), "none")
        self.assertEqual(seen(), before, "Cargo judges by time")
        self.assertEqual([path.name for path in built.iterdir()], ["syrupd"])

    def refusal(self, said):
        log = self.folder / "log"
        log.write_text(said)
        return tree.refusal(log)

    def test_only_a_compiler_refuses_a_defect(self):
        rustc = "error[E0282]: type annotations needed\n   --> engine/src/x.rs:282:9\n    |\n"
        for said, what in (
            (f"warning: unused\n --> a.rs:1:1\n{rustc}error: could not compile `x`\n",
             "error[E0282]: type annotations needed"),
            ("error: cannot find macro `x`\n --> a.rs:1:1\n", "error: cannot find macro `x`"),
            ("  --- stderr\n  src/root.bpf.c:7:5: error: use of 'x'\n",
             "src/root.bpf.c:7:5: error: use of 'x'"),
            ("error: linking with `cc` failed\n  = note: ld: x.o: undefined reference to `y'\n",
             "= note: ld: x.o: undefined reference to `y'"),
        ):
            refused = self.refusal(said)
            self.assertIsInstance(refused, tree.NotViable)
            self.assertEqual(str(refused), what)
            self.assertIsInstance(self.refusal(f"{said}No space left on device\n"), Error)
        for said in (
            "error: could not compile `x` (signal: 9, SIGKILL: kill)\n",
            "warning: unused\n --> a.rs:1:1\nerror: could not compile `x` (bin \"x\")\n",
            "error: failed to write `x`\n",
            "error: linking with `cc` failed: signal: 15\n",
        ):
            with self.subTest(said):
                self.assertIsInstance(self.refusal(said), Error)

    def test_a_copy_is_compiled_from_its_own_sources(self):
        seed, ran = self.folder / "seed", []
        seed.mkdir()
        (seed / "library").touch()
        content = {"a": b"1"}
        workspace = mock.Mock(folders={"x": "syrup-x"})

        def run(command, **options):
            ran.append(command)
            if command[0] == "cp":
                real(command, **options)
            else:
                self.assertNotIn("CARGO_TARGET_DIR", options["env"])
                self.assertEqual(options["cwd"], self.folder / "tree")

        real = subprocess.run
        with (
            mock.patch.object(subprocess, "run", run),
            mock.patch.dict("os.environ", {"CARGO_TARGET_DIR": "/x"}),
        ):
            copy = tree.Tree(self.folder / "tree", workspace)
            copy.prepare(content, seed)
            self.assertEqual([command[:2] for command in ran], [["cp", "-a"], ["cargo", "clean"]])
            self.assertIn("--package=syrup-x", ran[1])
            copy.prepare({"a": b"2"}, seed)
            self.assertEqual(len(ran), 2, "it is there")
            self.assertEqual((copy.path / "a").read_bytes(), b"2")
            # One that was moved, or whose making was broken off.
            for origin in ("elsewhere", None):
                (copy.path / "target/origin").unlink()
                if origin:
                    (copy.path / "target/origin").write_text(origin)
                ran.clear()
                copy.prepare(content, seed)
                self.assertEqual(len(ran), 2)

    def test_warnings_are_no_errors_in_a_copy(self):
        self.assertIn("include/src/compile.rs", tree.RELAXED)
        for name, changes in tree.RELAXED.items():
            content = tree.pristine(name).decode()
            for old, new in changes:
                self.assertNotIn(old, content)
                self.assertIn(new, content)
        with mock.patch.dict(tree.RELAXED, {"Makefile": [("-Wno-such", "")]}):
            with self.assertRaisesRegex(Error, "Makefile has no -Wno-such"):
                tree.pristine("Makefile")

    def test_no_other_file_makes_warnings_errors(self):
        found = subprocess.run(
            ["git", "grep", "-l", "-e", '"-Werror"', "-e", 'warnings = "deny"', "--",
             "*.rs", "*.toml"],
            cwd=tree.ROOT, stdout=subprocess.PIPE, text=True, check=True)
        # Programs of tests in C, not of the product.
        self.assertEqual({*found.stdout.split()} - {*tree.RELAXED},
                         {"tests/src/c_program.rs"})

    def test_a_filter_that_selects_nothing_is_found_beside_one_that_does(self):
        path = self.folder / "binary"
        path.write_text('#!/bin/sh\n[ "$3" = --ignored ] || echo a::b: test\necho child: test\n')
        path.chmod(0o755)
        binary = tree.Binary(None, path)
        found = native.selecting_nothing([binary], ("a", "::b", "c", "child"))
        self.assertEqual(found, ["c", "child"])
        # Of two targets of one name only one has to have it.
        one, two = (targets.Target(folder, "thread_hook", "test", "p") for folder in "ab")
        empty = self.folder / "empty"
        empty.write_text("#!/bin/sh\n")
        empty.chmod(0o755)
        binaries = {one: [binary], two: [tree.Binary(None, empty)]}
        campaign.check_filters([(one, ("a",)), (two, ("a",)), (two, ())], binaries)
        for tests in [(one, ("c",)), (two, ("c",))], [(two, ("a",))]:
            with self.assertRaisesRegex(Error, "'thread_hook [ac]' selects no test"):
                campaign.check_filters(tests, binaries)


class Processes(unittest.TestCase):
    def test_end_with_the_run_also_when_it_is_killed(self):
        here = str(Path(__file__).resolve().parent)
        run = subprocess.Popen(
            [sys.executable, "-B", "-c", "import sys\n"
             f"sys.path.insert(0, {here!r})\nfrom mutation import processes\n"
             "child = processes.start(['sh', '-c', 'echo $$; exec sleep 1000'])\nchild.wait()"],
            stdout=subprocess.PIPE, text=True)
        pid = int(run.stdout.readline())
        self.addCleanup(lambda: subprocess.run(["kill", str(pid)], stderr=subprocess.DEVNULL))
        run.kill()
        # Until the pipe has no writer left.
        run.communicate(timeout=20)


class Outcomes(unittest.TestCase):
    def test_what_a_binary_printed_is_judged(self):
        green = "test a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n"
        self.assertEqual(native.judge(green, 0), native.Outcome())
        red = "test a ... FAILED\ntest b::c ... FAILED\ntest result: FAILED. 3 passed; 2 failed;\n"
        self.assertEqual(native.judge(red, 101).red, "a and 1 more")
        self.assertIn("SIGSEGV", native.judge("", -11).red)
        self.assertIn("exit status 3", native.judge(green, 3).red)
        # It ended well without having reported.
        self.assertTrue(native.judge("", 0).red)

    def run_twice(self, *answers, filters=("a", "b")):
        """The outcome of a binary that gives these answers, (output, status), one
        after another; what each time was selected is in `selected`."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        waiting, self.selected = list(answers), []

        def run(command, _limit_s, stdout, **_options):
            self.selected.append(command[command.index("--test-threads=1") + 1:])
            output, status = waiting.pop(0)
            stdout.write(output)
            return status

        binary = tree.Binary(targets.Target("hook", "x", "unit", "syrup-hook"), Path("/x"))
        with mock.patch.object(processes, "run", run):
            return native.run(binary, filters, Path(folder.name), Path(folder.name) / "x.log", 9)

    RED = ("test m::a ... FAILED\ntest m::b ... ok\ntest m::c ... FAILED\n", 101)
    GREEN = ("test m::a ... ok\ntest result: ok. 1 passed;\n", 0)

    def test_a_red_test_runs_once_more_without_the_others(self):
        outcome = self.run_twice(self.RED, self.RED)
        self.assertEqual((outcome.red, outcome.unsteady), ("m::a and 1 more", ""))
        self.assertEqual(self.selected, [["a", "b"], ["--exact", "m::a", "m::c"]])

    def test_a_verdict_may_be_behind_what_a_child_printed(self):
        red = ("test m::a ... cannot open it\nFAILED\n\nfailures:\n\n---- m::a stdout ----\n"
               "   0: f\n\nfailures:\n    m::a\n\ntest result: FAILED. 0 passed; 1 failed;\n", 101)
        self.assertEqual(self.run_twice(red, red).red, "m::a")
        self.assertEqual(self.selected[1], ["--exact", "m::a"])

    def test_red_and_then_green_is_neither(self):
        outcome = self.run_twice(self.RED, self.GREEN, self.GREEN)
        self.assertEqual((outcome.red, outcome.unsteady), ("", "m::a and 1 more"))

    def test_a_test_that_is_red_only_behind_others_is_red(self):
        self.assertEqual(self.run_twice(self.RED, self.GREEN, self.RED).red, "m::a and 1 more")
        self.assertEqual(self.selected[2], ["a", "b"])

    def test_a_test_that_does_not_end_is_given_as_much_time_again(self):
        hangs = ("test m::a ... ok\ntest m::b ... ", None)
        self.assertIn("no end", self.run_twice(hangs, hangs).red)
        self.assertEqual(self.selected[1], ["--exact", "m::b"])
        self.assertIn("no end", self.run_twice(hangs, self.GREEN, self.GREEN).unsteady)

    def test_an_end_that_names_no_test_is_seen_twice(self):
        crash = ("thread panicked while panicking\n", -6)
        self.assertIn("SIGABRT", self.run_twice(crash, crash).red)
        self.assertEqual(self.selected, [["a", "b"]] * 2)

    def test_green_is_believed_at_once(self):
        self.assertEqual(self.run_twice(self.GREEN), native.Outcome())

    def left(self, **files):
        """A folder with the files that a guest left."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        for name, text in files.items():
            (Path(folder.name) / name.replace("_", ".")[1:]).write_text(text)
        return Path(folder.name)

    def test_a_complaint_of_the_kernel_is_red_although_the_test_passed(self):
        green = "test result: ok. 1 passed; 0 failed;\n"
        folder = self.left(x000_ended="0\n", x000_log=green)
        self.assertEqual(guest._outcome(folder / "000").red, "")
        folder = self.left(x000_ended="0\n", x000_log=green, x000_kernel="BUG: here\n")
        self.assertEqual(guest._outcome(folder / "000").red, "the kernel: BUG: here")

    def test_time_that_ran_out_is_red(self):
        folder = self.left(x000_ended="124\n", x000_log="test a ... ")
        self.assertIn("no end", guest._outcome(folder / "000").red)

    def test_what_was_left_out_is_neither(self):
        folder = self.left(x000_ended="skipped\n")
        self.assertTrue(guest._outcome(folder / "000").skipped)


class Machines(unittest.TestCase):
    """What is made of the end of a machine."""

    def run_all(self, vm_run: str, nr_entries=1):
        """The outcomes of entries in machines of a vm/run that behaves so."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        root = Path(folder.name)
        (root / "vm").mkdir()
        program = root / "vm/run"
        program.write_text("""#!/bin/sh
            echo "$*" >>calls
            for last; do :; done
            root=$PWD; cd "${last%/all}"
            nth=$(wc -l <"$root/calls")
            green() {
                for n; do
                    echo 'test result: ok. 1 passed; 0 failed;' >$n.log; echo 0 >$n.ended
                done
            }
            """ + vm_run)
        program.chmod(0o755)
        binary = tree.Binary(targets.Target("tests", "x", "test", "syrup-tests"), Path("/x"))
        entries = [guest.Entry(f"defect-{n}", binary, (), 20) for n in range(nr_entries)]
        with mock.patch.object(guest, "ROOT", root):
            guest.run(entries, targets.plan.Guest("m", "newest", ()), root / "out", lambda _: None)
        self.calls = (root / "calls").read_text()
        return [entry.outcome for entry in entries]

    def test_what_it_ran_before_it_died_counts_and_the_rest_goes_on_in_another(self):
        died = """case $nth in
            1) green 000; touch 001.started; exit 125 ;;
            2) [ -e 000.last ] && touch 000.started; exit 125 ;;
            *) green 000 ;;
            esac"""
        outcomes = self.run_all(died, 3)
        self.assertEqual(outcomes[0].red, "")
        self.assertIn("the machine died", outcomes[1].red)
        self.assertEqual(outcomes[2].red, "")
        self.assertEqual(len(self.calls.splitlines()), 3)

    def test_one_that_died_under_it_once_is_neither_red_nor_green(self):
        died = "[ $nth = 1 ] || { green 000; exit 0; }; touch 000.started; exit 125"
        [outcome] = self.run_all(died)
        self.assertEqual(outcome.red, "")
        self.assertIn("the machine died", outcome.unsteady)

    def test_one_whose_kernel_complained_or_time_ran_out_is_red(self):
        self.assertIn("complained", self.run_all("touch 000.started; exit 123")[0].red)
        self.assertIn("out of time", self.run_all("touch 000.started; exit 124")[0].red)

    def test_one_that_died_with_this_run_says_nothing(self):
        start = processes.start

        def stopped(*command, **options):
            child = start(*command, **options)
            processes._stopped = True
            return child

        with (
            mock.patch.object(processes, "_stopped", False),
            mock.patch.object(processes, "start", stopped),
            self.assertRaises(processes.Interrupted),
        ):
            self.run_all("touch 000.started; exit 125")

    def in_machine(self, test: str, without: str = ""):
        """The outcome of a test binary in machines whose kernel log is the file
        `kernel` and which keep what is in `left`; `nth` counts its runs, `selected` is
        what they were to run. `without` is what it does without the defect."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        root = Path(folder.name)
        for name, text in {
            "vm/run": f'echo >>{root}/machines; : >{root}/kernel; rm -f {root}/left/*\n'
                      f'for last; do :; done; PATH={root}/vm:$PATH exec sh "$last"',
            "vm/dmesg": f"cat {root}/kernel",
            "binary": f'cd {root}; shift; echo "$*" >>selected; nth=$(wc -l <selected)\n'
                      f"red() {{ echo 'test m::a ... FAILED'; exit 101; }}\n"
                      f"green() {{ echo 'test result: ok. 1 passed;'; exit 0; }}\n{test}",
            "control": f'cd {root}; shift; echo "without: $*" >>selected\n{without}',
        }.items():
            path = root / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        for name in ("left", "proc/1"):
            (root / name).mkdir(parents=True)
        (root / "proc/1/stat").write_text("1 (init) S 0\n")
        target = targets.Target("tests", "x", "test", "syrup-tests")
        binary, control = (tree.Binary(target, root / name) for name in ("binary", "control"))
        entry = guest.Entry("defect", binary, ("a", "b"), 20, control if without else None)
        left_in = {"proc": root / "proc", "scheduler": root / "left/state", "pins": root / "left"}
        with mock.patch.object(guest, "ROOT", root), mock.patch.object(guest, "LEFT_IN", left_in):
            guest.run([entry], targets.plan.Guest("m", "newest", ()), root / "out", lambda _: None)
        self.selected = (root / "selected").read_text().splitlines()
        self.nr_machines = len((root / "machines").read_text().splitlines())
        return entry.outcome

    def test_a_red_test_runs_once_more_in_the_same_machine(self):
        self.assertEqual(self.in_machine("red").red, "m::a")
        self.assertEqual((self.selected, self.nr_machines), (["a b", "--exact m::a"], 1))

    def test_red_and_then_green_in_a_machine_is_neither(self):
        outcome = self.in_machine("[ $nth = 1 ] && red; green")
        self.assertEqual((outcome.red, outcome.unsteady), ("", "m::a"))
        self.assertEqual(self.selected, ["a b", "--exact m::a", "a b"])

    def test_red_only_behind_others_is_red_in_a_machine_too(self):
        self.assertEqual(self.in_machine("[ $nth = 2 ] && green; red").red, "m::a")

    def test_red_with_the_defect_only_is_red(self):
        self.assertEqual(self.in_machine("red", "exit 0").red, "m::a")
        self.assertEqual(self.selected, ["a b", "--exact m::a", "without: --exact m::a"])
        outcome = self.in_machine("[ $nth = 2 ] && green; red", "exit 0")
        self.assertEqual((outcome.red, self.selected[-1]), ("m::a", "without: a b"))

    def test_red_without_the_defect_too_means_nothing(self):
        with self.assertRaisesRegex(Error, "red without any defect by now: m::a"):
            self.in_machine("red", "exit 101")

    def test_no_machine_is_used_again_in_which_something_was_left(self):
        for left in ("echo enabled >left/state", "mkdir left/syrup-1",
                     "mkdir -p proc/7; echo '7 (x y) S 1' >proc/7/stat"):
            with self.subTest(left):
                # What was left would make it red once more.
                outcome = self.in_machine(f"[ $nth = 1 ] && {{ {left}; red; }}; green")
                self.assertEqual((outcome.red, outcome.unsteady, self.nr_machines),
                                 ("", "m::a", 2))
                self.assertEqual(self.in_machine(f"{left}; red").red, "m::a")
                self.assertEqual(self.in_machine(f"{left}; green"), native.Outcome())

    def test_workers_of_udev_are_nobodys_doing(self):
        worker = "mkdir -p proc/7; echo '7 ((udev-worker)) S 1' >proc/7/stat"
        self.assertEqual(self.in_machine(f"{worker}; red").red, "m::a")
        self.assertEqual(self.nr_machines, 1)

    def test_what_was_killed_runs_again_in_another_machine(self):
        outcome = self.in_machine("printf 'test m::b ... '; exit 124")
        self.assertEqual((outcome.red, self.nr_machines), ("no end within its time", 2))

    def test_a_crash_runs_again_as_it_did(self):
        self.assertIn("139", self.in_machine("kill -SEGV $$").red)
        self.assertEqual(self.selected, ["a b", "a b"])
        self.in_machine("printf 'test m::b ... '; exit 101")
        self.assertEqual(self.selected, ["a b", "--exact m::b"])
        self.in_machine("printf 'test m::c ... oh\\nFAILED\\n\\nfailures:\\n    m::c\\n'; exit 101")
        self.assertEqual(self.selected, ["a b", "--exact m::c"])

    def test_a_kernel_that_complained_is_seen_to_do_so_in_another_machine(self):
        outcome = self.in_machine("echo BUG: here >>kernel; green")
        self.assertEqual((outcome.red, self.nr_machines), ("the kernel: BUG: here", 2))
        outcome = self.in_machine("[ $nth = 1 ] && echo BUG: here >>kernel; green")
        self.assertEqual((outcome.red, outcome.unsteady), ("", "the kernel: BUG: here"))

    def test_a_kernel_that_complains_at_the_second_time_is_red(self):
        outcome = self.in_machine("[ $nth = 2 ] && echo BUG: here >>kernel; red")
        self.assertEqual((outcome.red, self.nr_machines), ("m::a", 1))

    def test_one_that_emulation_broke_says_nothing(self):
        broke = "touch 000.started; exit 126"
        self.assertEqual(self.run_all(f"[ $nth = 3 ] && green 000 && exit 0; {broke}")[0].red, "")
        # Nor does it use up what make test may excuse.
        self.assertEqual(self.calls.count("--uncounted"), 3)
        with self.assertRaisesRegex(Error, "emulation breaks the machine"):
            self.run_all(broke)

    def test_any_other_end_says_nothing(self):
        for ending in ("touch 000.started; exit 1", "touch 000.started; kill $$", "exit 77"):
            with self.subTest(ending), self.assertRaisesRegex(Error, "see .*vm.log"):
                self.run_all(ending)
        with self.assertRaisesRegex(Error, "the machine does not start"):
            self.run_all("exit 125")


class Verdicts(unittest.TestCase):
    """What a run leaves behind, and the next one begins with."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        for name in ("one", "two"):
            (self.folder / f"{name}.patch").write_text(f"Defect: {name}\nTests: limits\n{DIFF}")
        self.enterContext(mock.patch.object(campaign, "PLACE", self.folder))
        self.enterContext(mock.patch.object(campaign, "say"))

    def begin(self, at="tree", fresh=False, **options):
        """A run that has found out what there is left to do."""
        run = campaign.Campaign(patches.read(self.folder, []), builders=1,
                                **{"native_only": False, "fresh": fresh, **options})
        run.started = 0
        run._go_on(results.Results(self.folder / "results.json", at))
        return run

    def left(self, *arguments, **options):
        return [variant.name for variant in self.begin(*arguments, **options).left]

    def judge(self, variant, run, outcome):
        run._outcome(variant, variant.tests[0][0], (), outcome, 1)
        run._report(variant)

    def told(self):
        return [(verdict["defect"], verdict["verdict"], verdict["by"])
                for verdict in json.loads((self.folder / "results.json").read_text())["verdicts"]]

    def test_are_written_as_they_come(self):
        run = self.begin()
        self.judge(run.left[0], run, native.Outcome("m::a"))
        self.assertEqual(self.told(), [("one", "caught", "syrupd:limits: m::a")])
        self.judge(run.left[1], run, native.Outcome())
        self.assertEqual(self.told()[1:], [("two", "survived", "")])

    def test_are_not_found_twice(self):
        run = self.begin()
        self.judge(run.left[0], run, native.Outcome("m::a"))
        again = self.begin()
        self.assertEqual([variant.name for variant in again.left], ["two"])
        self.assertEqual(again.variants[0].verdict, ("caught", "syrupd:limits: m::a"))
        self.judge(again.left[0], again, native.Outcome())
        self.assertEqual(again.count([v.patch for v in again.variants]), (1, 2))
        self.assertEqual(self.left(), [])
        self.assertEqual(len(self.told()), 2)

    def test_a_run_with_nothing_left_builds_nothing(self):
        run = self.begin()
        for variant in run.left:
            self.judge(variant, run, native.Outcome("m::a"))
        again = campaign.Campaign([v.patch for v in run.variants], native_only=False, builders=1)
        with (
            mock.patch.object(campaign, "contents", dict),
            mock.patch.object(campaign, "of_tree", lambda _: "tree"),
            mock.patch.object(campaign, "Tree", side_effect=AssertionError),
        ):
            again.run()
        self.assertEqual(again.count([v.patch for v in again.variants]), (2, 2))

    def test_are_of_one_tree_one_text_and_one_set_of_tests(self):
        run = self.begin()
        for variant in run.left:
            self.judge(variant, run, native.Outcome("m::a"))
        self.assertEqual(self.left("another tree"), ["one", "two"])
        patch = self.folder / "two.patch"
        patch.write_text(patch.read_text().replace("+b", "+c"))
        self.assertEqual(self.left(), ["two"])
        patch.write_text(patch.read_text().replace("+c", "+b").replace("limits", "cross_layer"))
        self.assertEqual(self.left(), ["two"])
        run = self.begin()
        self.judge(run.left[0], run, native.Outcome())
        self.assertEqual(self.left(), [])
        self.assertEqual(self.left(native_only=True), ["two"])

    def test_a_tree_is_its_files_without_the_patches(self):
        content = {"a/b": b"1", "tests/mutants/x.patch": b"2"}
        one = results.of_tree(content)
        self.assertEqual(one, results.of_tree({"a/b": b"1"}))
        for other in ({"a/b": b"2"}, {"a/c": b"1"}, {**content, "tests/mutants/run": b""}):
            self.assertNotEqual(one, results.of_tree(other))

    def test_what_is_no_list_of_verdicts_is_begun_anew(self):
        for text in ("", "[]", '[{"patch": "x"}]', '{"tree": "tree"}'):
            (self.folder / "results.json").write_text(text)
            self.assertEqual(self.left(), ["one", "two"])

    def test_begun_anew_leaves_those_that_are_not_run(self):
        run = self.begin()
        for variant in run.left:
            self.judge(variant, run, native.Outcome("m::a"))
        one = campaign.Campaign(patches.read(self.folder, ["one"]), False, 1, fresh=True)
        one.started = 0
        one._go_on(results.Results(self.folder / "results.json", "tree"))
        self.assertEqual([variant.name for variant in one.left], ["one"])
        self.judge(one.left[0], one, native.Outcome())
        self.assertEqual(sorted(self.told()), [("one", "survived", ""),
                                               ("two", "caught", "syrupd:limits: m::a")])

    def test_a_run_that_breaks_ends_and_a_defect_without_one_is_an_error(self):
        run = campaign.Campaign(patches.read(self.folder, []), False, builders=2)
        broken = mock.Mock(path=Path("tree-0"), **{"build.side_effect": OSError("full")})
        with (
            mock.patch.object(campaign, "contents", dict),
            mock.patch.object(campaign, "Tree", return_value=broken),
            mock.patch("traceback.print_exception"),
            self.assertRaisesRegex(Error, "full"),
        ):
            run.run()
        with (
            mock.patch.object(campaign, "contents", dict),
            mock.patch.object(campaign, "Tree", return_value=broken),
            mock.patch.object(run, "errors", []),
            mock.patch.object(run, "_builders"),
            self.assertRaisesRegex(Error, "no verdict on one, two"),
        ):
            run.run()

    def test_a_run_that_stops_says_nothing_of_what_it_left_out(self):
        run = self.begin()
        run._fail(Error("why"))
        run._report(run.left[0])
        self.judge(run.left[1], run, native.Outcome("m::a"))
        self.assertEqual(self.told(), [("two", "caught", "syrupd:limits: m::a")])

    def test_unsteady_is_not_caught(self):
        run = self.begin()
        flaky, both = run.left
        run._outcome(both, both.tests[0][0], (), native.Outcome(unsteady="m::b"), 1)
        self.judge(both, run, native.Outcome("m::a"))
        self.judge(flaky, run, native.Outcome(unsteady="m::b"))
        self.assertEqual(self.told(), [("two", "caught", "syrupd:limits: m::a"),
                                       ("one", "unsteady", "syrupd:limits: m::b")])
        self.assertEqual(run.count([v.patch for v in run.variants]), (1, 2))
        # Also for the run that goes on with it.
        self.assertEqual(self.begin().variants[0].verdict, ("unsteady", "syrupd:limits: m::b"))


class ExitStatus(unittest.TestCase):
    def judged(self, caught, viable, *options, rotten=(), unsteady=(), error=None):
        """(exit status, last line) of a run with such an outcome."""
        run = mock.Mock(**{"count.return_value": (caught, viable), "run.side_effect": error,
                           "rotten.return_value": list(rotten),
                           "unsteady.return_value": list(unsteady)})
        main = runpy.run_path(str(Path(__file__).with_name("run")))["main"]
        said = io.StringIO()
        with (
            mock.patch.object(campaign, "claim"),
            mock.patch.object(campaign, "Campaign", return_value=run),
            mock.patch.object(sys, "argv", ["run", "--only", "turn-not-kept", *options]),
            contextlib.redirect_stdout(said), contextlib.redirect_stderr(said),
        ):
            return main(), said.getvalue().splitlines()[-1]

    def test_tells_whether_enough_were_caught(self):
        self.assertEqual(self.judged(2, 2), (0, "caught 2 of 2"))
        self.assertEqual(self.judged(1, 2), (1, "caught 1 of 2"))
        self.assertEqual(self.judged(1, 2, "--at-least", "50"), (0, "caught 1 of 2"))

    def test_of_a_run_in_which_nothing_was_viable_is_1(self):
        self.assertEqual(self.judged(0, 0), (1, "caught 0 of 0"))

    def test_of_a_run_with_a_rotten_patch_is_1(self):
        patch = patches.Patch("p", Path("p.patch"), "d")
        self.assertEqual(self.judged(2, 2, rotten=[patch]), (1, "caught 2 of 2"))

    def test_of_a_run_in_which_a_test_was_unsteady_without_a_defect_is_1(self):
        self.assertEqual(self.judged(2, 2, unsteady=["x"]), (1, "caught 2 of 2"))

    def test_of_a_run_that_broke_is_2(self):
        self.assertEqual(self.judged(2, 2, error=OSError("full"))[0], 2)

    def test_of_a_run_that_means_nothing_is_2(self):
        self.assertEqual(self.judged(2, 2, error=Error("why")), (2, "mutants: why"))


if __name__ == "__main__":
    unittest.main()
