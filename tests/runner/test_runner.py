"""Tests of the runner: whole runs, of programs that talk as libtest, vm/run and
a guest's agent do, and misbehave."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
from pathlib import Path

from runner import ROOT, agent, jobs, main, plan, skips
from runner.report import Report

# Tests of a fake binary: what the function body does decides their fate. A test
# that returns passes; a number it returns is its exit status.
LIBTEST = """\
#!{python} -IS
import os, signal, subprocess, sys, time
def say(text):
    sys.stdout.write(text); sys.stdout.flush()
def skip(what):
    with open(os.environ["SYRUP_TEST_SKIPS"], "a") as file:
        file.write(f"test: needs {{what}}\\n")
{tests}
tests = {{name[5:]: f for name, f in list(globals().items()) if name.startswith("test_")}}
ignored = {{name: f for name, f in tests.items() if name.startswith("ignored_")}}
if "--list" in sys.argv:
    for name in ignored if "--ignored" in sys.argv else tests:
        print(f"{{name}}: test")
    sys.exit(0)
assert sys.argv[1:4] == ["--exact", "--nocapture", "--test-threads=1"], sys.argv
say(f"\\nrunning {{len(sys.argv) - 4}} tests\\n")
failed = []
for name in sorted(sys.argv[4:]):
    say(f"test {{name}} ... ")
    if tests[name]() is not None:
        failed.append(name)
    say("FAILED\\n" if name in failed else "ok\\n")
if failed:
    say("\\nfailures:\\n\\nfailures:\\n" + "".join(f"    {{name}}\\n" for name in failed))
say(f"\\ntest result: {{'FAILED' if failed else 'ok'}}. {{len(sys.argv) - 4 - len(failed)}} passed; "
    f"{{len(failed)}} failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.00s\\n\\n")
sys.exit(101 if failed else 0)
"""

# Takes vm/run's arguments and runs the command here.
VM_RUN = """\
#!{python} -IS
import os, subprocess, sys
at = sys.argv.index("--")
options, command = sys.argv[1:at], sys.argv[at + 1:]
with open({calls!r}, "a") as calls:
    calls.write(" ".join(options) + "\\n")
nth = sum(1 for _ in open({calls!r}))
def run():
    return subprocess.run(command).returncode
{body}
"""


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


class Fakes(unittest.TestCase):
    """A folder with fake binaries, a fake vm/run and a list of skips."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="syrup-runner-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.calls = self.folder / "calls"
        self.calls.touch()
        self.skip_list = self.folder / "skips"
        self.skip_list.write_text("")
        self.binaries = []
        self.root = True
        self.guests = ()
        (self.folder / "vm").mkdir()
        program(self.folder / "vm/kernel", "#!/bin/sh\necho /kernel\n")
        self.vm("sys.exit(run())")
        self.test_limit_s = 20
        self.slots = 2

    def binary(self, target: str, tests: str):
        path = program(self.folder / target.replace("/", "-"), LIBTEST.format(
            python=sys.executable, tests=textwrap.dedent(tests)))
        self.binaries.append((target, path, self.folder))

    def vm(self, body: str):
        program(self.folder / "vm/run", VM_RUN.format(
            python=sys.executable, calls=str(self.calls), body=textwrap.dedent(body)))

    def make(self, *options):
        report = Report()
        run = main.Run(
            main.arguments([*options, "--slots", str(self.slots)]), report, guests=self.guests,
            folder=self.folder / "out", skip_list=self.skip_list,
            vm=self.folder / "vm", root=self.root)
        return run

    def run_all(self, *options):
        """(exit status, output) of a run of the fakes."""
        run = self.make(*options)
        said = io.StringIO()
        limit, plan.NATIVE_TEST_LIMIT_S = plan.NATIVE_TEST_LIMIT_S, self.test_limit_s
        try:
            with contextlib.redirect_stdout(said):
                build = jobs.Build("build", ["true"], 10)
                build.binaries = self.binaries
                run.add(build)
                run.scheduler.run()
                status = run.finish()
        finally:
            plan.NATIVE_TEST_LIMIT_S = limit
        self.said = said.getvalue()
        return status, self.said.rstrip().splitlines()[-1]

    def assert_run(self, status, last, *options):
        self.assertEqual(self.run_all(*options), (status, last), self.said)


class Whole(Fakes):
    def outcome(self, *added):
        """(exit status, what was said) of a run of these jobs."""
        run = self.make()
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            run.add(*added)
            run.scheduler.run()
            status = run.finish()
        self.assertNotIn("Traceback", said.getvalue())
        return status, said.getvalue()

    def test_after_a_build_that_failed_nothing_runs(self):
        built = jobs.Build("build", ["false"], 10)
        self.binary("fake/one", "def test_a(): pass")
        built.binaries = self.binaries
        seen = self.folder / "seen"
        status, said = self.outcome(built, jobs.Job("a check", ["touch", str(seen)], 9,
                                                    after=("build",)))
        self.assertEqual(status, 1)
        self.assertIn("note: nothing else was run: build failed", said)
        self.assertTrue(said.endswith("0 passed, 1 failed, 0 skipped\n"), said)
        self.assertEqual([line for line in said.splitlines() if "start " in line],
                         [line for line in said.splitlines() if line.endswith("start   build")])
        self.assertFalse(seen.exists())

    def test_after_a_check_that_failed_all_does(self):
        status, said = self.outcome(jobs.Job("a", ["false"], 9, expected_s=99),
                                    jobs.Job("b", ["true"], 9, after=("a",)))
        self.assertEqual(status, 1)
        self.assertIn("1 passed, 1 failed", said)

    def test_a_program_that_is_not_there_fails_its_job_alone(self):
        status, said = self.outcome(jobs.Job("a", ["no-such-program", "-x"], 9),
                                    jobs.Job("b", ["true"], 9, after=("a",)))
        self.assertEqual(status, 1)
        self.assertRegex(said, "no-such-program.*No such file")
        self.assertIn("1 passed, 1 failed", said)

    def test_has_its_folder_to_itself(self):
        with self.make().claim(), self.assertRaisesRegex(main.Busy, "another run uses"):
            self.make().run()
        self.make().claim().close()

    def test_that_only_lists_writes_no_plan(self):
        self.binary("fake/one", "def test_a(): pass")
        run = self.make("--list")
        self.assertTrue(run.plan_tests(self.binaries))
        self.assertEqual(list((self.folder / "out").glob("*.json")), [])


class Native(Fakes):
    def test_tests_that_pass_are_counted_once_and_children_of_tests_not_at_all(self):
        self.binary("fake/one", "def test_a(): pass\ndef test_ignored_child(): return 1")
        self.binary("fake/two", "def test_a(): pass\ndef test_b(): pass")
        self.assert_run(0, "3 passed, 0 failed, 0 skipped")

    def test_a_failure_is_shown_twice_with_its_panic_and_fails_the_run(self):
        self.binary("fake/one", """
            def test_a(): pass
            def test_b():
                say("thread 'b' panicked at src/b.rs:7:3:\\nleft: 1\\n")
                return 101
            """)
        self.assert_run(1, "1 passed, 1 failed, 0 skipped")
        self.assertEqual(self.said.count("panicked at src/b.rs:7:3"), 2)
        self.assertIn("failed: fake/one::b (native): failed", self.said)

    def test_a_test_that_hangs_is_named_and_killed_with_what_it_started(self):
        self.test_limit_s = 1
        self.binary("fake/one", f"""
            def test_a():
                child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
                open({str(self.folder / 'pid')!r}, "w").write(str(child.pid))
                time.sleep(1000)
            def test_b(): pass
            """)
        self.assert_run(1, "1 passed, 1 failed, 0 skipped")
        self.assertIn("fake/one::a (native): hangs: it did not end within 1 s", self.said)
        self.assertIn("(the test)", self.said)
        pid = int((self.folder / "pid").read_text())
        self.assertIsNone(agent.stat(pid), "the hung test's child lives")

    def test_a_test_that_crashes_is_named_with_its_signal_and_the_rest_runs(self):
        self.binary("fake/one", """
            def test_a():
                say("half a line")
                os.kill(os.getpid(), signal.SIGSEGV)
            def test_b(): pass
            """)
        self.assert_run(1, "1 passed, 1 failed, 0 skipped")
        self.assertIn("fake/one::a (native): killed by SIGSEGV", self.said)
        self.assertIn("half a line", self.said)

    def test_a_test_that_exits_early_with_success_has_no_result(self):
        self.binary("fake/one", "def test_a(): sys.exit(0)")
        self.assert_run(1, "0 passed, 1 failed, 0 skipped")
        self.assertIn("ended without a result", self.said)

    def test_output_may_lack_a_newline_and_hold_any_bytes(self):
        self.binary("fake/one", """
            def test_a():
                sys.stdout.flush()
                os.write(1, b"\\xff\\xfe\\x00 test result: ok. 1 passed")
            def test_b():
                os.write(1, b"\\xff panicked at \\xc3\\x28")
                return 101
            def test_c():
                say("@test {not json\\n@test {\\"done\\": true}\\n")
            """)
        self.assert_run(1, "2 passed, 1 failed, 0 skipped")
        self.assertIn("panicked at", self.said)

    def test_a_process_left_behind_fails_its_test(self):
        self.binary("fake/one", """
            def test_a(): subprocess.Popen(["sleep", "1000"])
            def test_b(): pass
            """)
        self.assert_run(1, "1 passed, 1 failed, 0 skipped")
        self.assertRegex(self.said, r"left processes behind: sleep \(\d+")

    def test_what_a_test_mounts_goes_with_its_job_where_it_may_mount(self):
        here = os.readlink("/proc/self/ns/mnt")
        self.binary("fake/one", f"""
            def test_a():
                same = os.readlink("/proc/self/ns/mnt") == {here!r}
                return None if same == (os.geteuid() != 0) else 1
            """)
        self.assert_run(0, "1 passed, 0 failed, 0 skipped")

    @unittest.skipUnless(os.geteuid() == 0, "only root may mount")
    def test_a_file_system_that_a_killed_test_mounted_does_not_keep_its_folder(self):
        seen = self.folder / "seen"
        kept = self.folder / "kept"
        kept.mkdir()
        (kept / "file").touch()
        self.binary("fake/one", f"""
            def test_a():
                place = os.environ["TMPDIR"] + "/pins of its own"
                os.mkdir(place)
                subprocess.run(["mount", "--bind", {str(kept)!r}, place], check=True)
                open({str(seen)!r}, "w").write(place)
                os.kill(os.getpid(), 9)
            """)
        self.assert_run(1, "0 passed, 1 failed, 0 skipped")
        self.assertFalse(os.path.exists(os.path.dirname(seen.read_text())))
        self.assertTrue((kept / "file").exists(), "what was mounted there was removed")

    def test_files_left_behind_fail_their_test_and_are_gone(self):
        seen = self.folder / "seen"
        self.binary("fake/one", f"""
            import tempfile
            def test_a():
                with tempfile.TemporaryDirectory(): pass
            def test_b():
                open({str(seen)!r}, "a").write(tempfile.mkdtemp(prefix="syrup-bench-") + "\\n")
            """)
        self.binary("fake/two", f"""
            import tempfile
            def test_c():
                open({str(seen)!r}, "a").write(tempfile.mkstemp()[1] + "\\n")
                os.kill(os.getpid(), 9)
            def test_d(): pass
            """)
        self.assert_run(1, "2 passed, 2 failed, 0 skipped")
        self.assertRegex(self.said, "fake/one::b.* left files in its temporary folder behind: "
                         "syrup-bench-")
        paths = seen.read_text().split()
        self.assertEqual(len(paths), 2)
        for path in paths:
            self.assertFalse(os.path.exists(path))
            self.assertFalse(os.path.exists(os.path.dirname(path)), "the agent's own is left")

    def test_a_childs_last_words_are_not_the_tests(self):
        self.binary("fake/one", """
            SUMMARY = "ok\\n\\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\\n\\n"
            def test_a():
                say("\\nrunning 1 test\\ntest child ... " + SUMMARY)
                os.kill(os.getpid(), signal.SIGKILL)
            def test_b(): say("\\nrunning 1 test\\ntest child ... " + SUMMARY)
            """)
        self.assert_run(1, "1 passed, 1 failed, 0 skipped")
        self.assertIn("fake/one::a (native): killed by SIGKILL", self.said)

    def test_a_child_that_is_done_after_its_test_does_not_speak_for_it(self):
        childs = "ok\\n\\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\\n\\n"
        self.binary("fake/one", f"""
            import atexit
            def test_a():
                atexit.register(say, "test child ... {childs}")
                return 1
            """)
        self.binary("fake/two", f"""
            def test_b():
                global say
                said = say
                say = lambda text: said(text + "test child ... ok\\n" * text.startswith("FAILED"))
                return 1
            def test_c(): pass
            """)
        # Which of two it was is not to be known: the last one stands for it.
        self.assert_run(1, "1 passed, 2 failed, 0 skipped")
        self.assertIn("or one before it in its binary failed", self.said)

    def test_tests_of_a_binary_share_its_process(self):
        self.binary("fake/one", """
            def test_a(): os.environ["SEEN"] = "1"
            def test_b(): return None if "SEEN" in os.environ else 1
            """)
        self.assert_run(0, "2 passed, 0 failed, 0 skipped")

    def test_binaries_run_side_by_side_the_longest_first(self):
        order = self.folder / "order"
        body = f"def test_a(): open({str(order)!r}, 'a').write('%s')"
        self.slots = 1
        for name in ("short", "long", "middle"):
            self.binary(f"fake/{name}", body % name[0])
        out = self.folder / "out"
        out.mkdir()
        (out / "times.json").write_text(
            json.dumps({"fake/short": 1, "fake/long": 100, "fake/middle": 50}))
        self.assert_run(0, "3 passed, 0 failed, 0 skipped")
        self.assertEqual(order.read_text(), "lms")

        # Two that wait for each other can only pass side by side.
        self.binaries = []
        self.slots = 2
        meet = """
            def test_a():
                open({mine!r}, "w")
                while not os.path.exists({other!r}): time.sleep(0.01)
            """
        here, there = str(self.folder / "here"), str(self.folder / "there")
        self.binary("fake/here", meet.format(mine=here, other=there))
        self.binary("fake/there", meet.format(mine=there, other=here))
        self.assert_run(0, "2 passed, 0 failed, 0 skipped")

    def test_a_binary_that_cannot_list_its_tests_fails_the_run(self):
        path = program(self.folder / "broken", "#!/bin/sh\nexit 3\n")
        self.binaries.append(("fake/broken", path, self.folder))
        self.binary("fake/one", "def test_a(): pass")
        self.assert_run(1, "1 passed, 1 failed, 0 skipped")
        self.assertIn("fake/broken (nowhere): cannot list its tests: exit status 3", self.said)


class Skips(Fakes):
    TESTS = "def test_a(): skip('luck')\ndef test_b(): pass"

    def test_one_that_no_list_names_fails_the_run(self):
        self.binary("fake/one", self.TESTS)
        self.assert_run(1, "1 passed, 1 failed, 0 skipped")
        self.assertIn("fake/one::a (native): skipped: needs luck", self.said)

    def test_one_that_the_list_names_is_a_skip_with_its_reason(self):
        self.binary("fake/one", self.TESTS)
        self.skip_list.write_text("# why\nfake/*::a native no luck in CI\n")
        self.assert_run(0, "1 passed, 0 failed, 1 skipped")
        self.assertIn("needs luck (tests/skips: no luck in CI)", self.said)

    def test_one_that_is_ignored_is_one(self):
        self.binary("fake/one", "def test_a(): pass\ndef test_ignored_b(): pass")
        self.binary("fake/two", "def test_a(): pass")
        self.assert_run(1, "2 passed, 1 failed, 0 skipped")
        self.assertIn("fake/one::ignored_b (nowhere): skipped: #[ignore]", self.said)
        self.assert_run(0, "1 passed, 0 failed, 0 skipped", "--job", "fake/two")
        self.assert_run(0, "1 passed, 0 failed, 0 skipped", "--filter", "one::a")
        self.skip_list.write_text("*::ignored_b * no luck\n")
        self.assert_run(0, "2 passed, 0 failed, 1 skipped")

    def test_the_list_speaks_of_one_place_only(self):
        self.binary("fake/one", self.TESTS)
        self.skip_list.write_text("fake/one::a guest no luck there\n")
        self.assert_run(1, "1 passed, 1 failed, 0 skipped")

    def test_an_entry_that_no_longer_skips_or_names_nothing_is_reported(self):
        self.binary("fake/one", self.TESTS)
        self.skip_list.write_text("*::a native luck\n*::b native was so once\n*::c * gone\n")
        self.assert_run(0, "1 passed, 0 failed, 1 skipped")
        self.assertIn("note: tests/skips:2: *::b no longer skips", self.said)
        self.assertIn("note: tests/skips:3: no test is *::c", self.said)

    def test_a_line_without_a_reason_is_refused(self):
        self.skip_list.write_text("fake/one::a native\n")
        with self.assertRaisesRegex(skips.Malformed, "skips:1: a line is TEST WHERE REASON"):
            self.make()

    def test_in_a_guest_fail_the_run_too(self):
        self.guests = (plan.Guest("guest", "newest", ("fake/guest",)),)
        self.binary("fake/guest", self.TESTS)
        self.assert_run(1, "1 passed, 1 failed, 0 skipped")
        self.assertIn("fake/guest::a (guest): skipped", self.said)

    def test_for_want_of_root_run_again_in_a_guest(self):
        self.root = False
        self.binary("fake/one", """
            def test_a(): skip("root") if not os.path.exists(%r) else None
            def test_b(): pass
            """ % str(self.folder / "in-guest"))
        self.vm(f"open({str(self.folder / 'in-guest')!r}, 'w'); sys.exit(run())")
        self.assert_run(0, "2 passed, 0 failed, 0 skipped")
        (self.folder / "in-guest").unlink()
        self.assert_run(0, "1 passed, 0 failed, 0 skipped", "--job", "fake/one",
                        "--filter", "::a")
        (self.folder / "in-guest").unlink()
        self.assert_run(1, "1 passed, 1 failed, 0 skipped", "--native")
        self.assertIn("root is missing", self.said)


class Selection(Fakes):
    def setUp(self):
        super().setUp()
        self.guests = (plan.Guest("guest", "newest", ("fake/guest",), limit_s=30, test_limit_s=20),)
        self.binary("fake/one", "def test_a(): pass\ndef test_b(): pass")
        self.binary("fake/guest", "def test_c(): pass")

    def test_by_a_part_of_the_name_boots_no_guest_in_vain(self):
        self.assert_run(0, "1 passed, 0 failed, 0 skipped", "--filter", "one::b")
        self.assertEqual(self.calls.read_text(), "")
        self.assert_run(0, "1 passed, 0 failed, 0 skipped", "--filter", "guest")
        self.assertNotEqual(self.calls.read_text(), "")

    def test_by_job(self):
        self.assert_run(0, "2 passed, 0 failed, 0 skipped", "--job", "fake/one")
        self.assert_run(0, "1 passed, 0 failed, 0 skipped", "--job", "guest")

    def test_of_nothing_fails_the_run(self):
        self.assert_run(1, "0 passed, 1 failed, 0 skipped", "--filter", "nonsense")
        self.assertIn("--filter nonsense (nowhere): no such test", self.said)
        self.assert_run(1, "0 passed, 1 failed, 0 skipped", "--job", "nonsense")
        self.assert_run(1, "2 passed, 1 failed, 0 skipped", "--job", "fake/one", "--job", "nonsense")
        self.assertIn("--job nonsense (nowhere): no such test", self.said)
        self.assert_run(1, "0 passed, 1 failed, 1 skipped", "--native", "--job", "guest")
        self.assert_run(1, "0 passed, 1 failed, 1 skipped", "--native", "--filter", "guest")

    def test_that_the_plan_makes_of_nothing_fails_the_run(self):
        self.guests += (plan.Guest("other", "newest", ("fake/gone",)),)
        self.assert_run(1, "3 passed, 1 failed, 0 skipped")
        self.assertIn("fake/gone (other): tests/runner/plan.py names it", self.said)

    def test_that_no_line_of_the_plan_makes_fails_the_run(self):
        self.guests = (plan.Guest("guest", "newest", ("fake/guest::other",)),)
        self.assert_run(1, "2 passed, 2 failed, 0 skipped")
        self.assertIn("fake/guest::c (nowhere): no line of tests/runner/plan.py", self.said)

    def test_of_native_tests_counts_the_others_as_skipped(self):
        self.assert_run(0, "2 passed, 0 failed, 1 skipped", "--native")
        self.assertIn("skipped: fake/guest::c (guest): --native was given", self.said)


class Guests(Fakes):
    def setUp(self):
        super().setUp()
        self.guests = (plan.Guest("guest", "newest", ("fake/guest",), limit_s=30, test_limit_s=20),)
        self.binary("fake/guest", "def test_a(): pass\ndef test_b(): pass\ndef test_c(): pass")

    def test_get_what_the_plan_says(self):
        self.guests = (plan.Guest("guest", "no-scx", ("fake/guest::a", "fake/guest::b"), cpus=2,
                                  memory="3G", icount=True, limit_s=77),
                       plan.Guest("other", "newest", ("fake/guest::c",)))
        self.assert_run(0, "3 passed, 0 failed, 0 skipped")
        self.assertIn("--kernel no-scx --name guest --cpus 2 --memory 3G --icount --timeout 77",
                      self.calls.read_text())
        self.assertIn(f"kernel: guest: Linux {os.uname().release}", self.said)

    # What dies: the first test has ended, the second is running.
    DIES = """
        import json
        print('@test {"kernel": "7.0"}')
        print('@test {"begin": "fake/guest::a"}')
        print('@test {"end": "fake/guest::a", "status": "passed", "why": "", "output": ""}')
        print('half a line@test {"begin": "fake/guest::b"}', flush=True)
        print("Kernel panic", flush=True)
        """

    def test_one_that_dies_halfway_loses_no_result_and_hides_no_test(self):
        self.vm(self.DIES + "sys.exit(125)")
        self.assert_run(1, "1 passed, 2 failed, 0 skipped")
        self.assertIn("fake/guest::b (guest): running when its job ended: the guest died",
                      self.said)
        self.assertIn("fake/guest::c (guest): not run", self.said)
        self.assertIn("Kernel panic", self.said)

    def test_one_that_emulation_broke_runs_again_and_counts_once(self):
        self.vm(self.DIES.replace("import json", "if nth > 1: sys.exit(run())")
                + "sys.exit(126)")
        self.assert_run(0, "3 passed, 0 failed, 0 skipped")
        self.assertIn("note: guest: run again, emulation broke the guest", self.said)
        self.assertEqual(len(self.calls.read_text().splitlines()), 2)

    def test_one_that_booted_at_the_second_attempt_only_is_noted(self):
        self.vm("print('vm: the guest did not boot within 1 s; trying once more, with'); "
                "sys.exit(run())")
        self.assert_run(0, "3 passed, 0 failed, 0 skipped")
        self.assertIn("note: guest: the guest did not boot within 1 s; trying once more",
                      self.said)

    def test_a_failure_before_emulation_broke_is_not_forgotten(self):
        self.vm("""
            if nth > 1: sys.exit(run())
            print('@test {"begin": "fake/guest::a"}')
            print('@test {"end": "fake/guest::a", "status": "failed", "why": "x", "output": ""}')
            sys.exit(126)
            """)
        self.assert_run(1, "2 passed, 1 failed, 0 skipped")

    def test_one_that_emulation_breaks_twice_fails(self):
        self.vm(self.DIES + "sys.exit(126)")
        self.assert_run(1, "1 passed, 2 failed, 0 skipped")
        self.assertEqual(len(self.calls.read_text().splitlines()), 2)

    def test_a_complaint_of_the_kernel_fails_a_run_whose_tests_passed(self):
        self.vm("status = run(); print('vm: WARNING: at kernel/sched/ext.c'); sys.exit(123)")
        self.assert_run(1, "3 passed, 1 failed, 0 skipped")
        self.assertIn("guest (the job itself) (guest): the guest's kernel complained", self.said)
        self.assertIn("WARNING: at kernel/sched/ext.c", self.said)

    def test_success_without_tests_is_none(self):
        self.vm("sys.exit(0)")
        self.assert_run(1, "0 passed, 3 failed, 0 skipped")
        self.assertIn("fake/guest::a (guest): not run", self.said)

    def test_one_that_outlives_its_time_is_ended(self):
        self.guests = (plan.Guest("guest", "newest", ("fake/guest",), limit_s=-899),)
        self.vm("import time; time.sleep(1000)")
        self.assert_run(1, "0 passed, 3 failed, 0 skipped")
        self.assertIn("did not end within 1 s", self.said)

    def test_a_kernel_that_cannot_be_downloaded_fails_unless_it_was_allowed(self):
        self.vm("print('vm: no route to the mirror'); sys.exit(77)")
        self.assert_run(1, "0 passed, 3 failed, 0 skipped")
        self.assertIn("no route to the mirror", self.said)
        self.assertIn("SYRUP_ALLOW_OFFLINE=1", self.said)
        os.environ["SYRUP_ALLOW_OFFLINE"] = "1"
        self.addCleanup(os.environ.pop, "SYRUP_ALLOW_OFFLINE")
        self.assert_run(0, "0 passed, 0 failed, 3 skipped")

    def test_77_of_a_guest_that_ran_is_no_excuse(self):
        os.environ["SYRUP_ALLOW_OFFLINE"] = "1"
        self.addCleanup(os.environ.pop, "SYRUP_ALLOW_OFFLINE")
        self.vm("run(); sys.exit(77)")
        self.assert_run(1, "3 passed, 1 failed, 0 skipped")

    def test_a_test_that_fails_in_a_guest_fails_the_run_with_its_output(self):
        self.binaries = []
        self.binary("fake/guest", """
            def test_a():
                say("thread 'a' panicked at src/a.rs:1:1:\\n")
                return 101
            """)
        self.assert_run(1, "0 passed, 1 failed, 0 skipped")
        self.assertIn("panicked at src/a.rs", self.said)


class Checks(unittest.TestCase):
    def judged(self, job, *lines, status=0):
        for line in lines:
            job.line(line)
        job.done(status)
        return {outcome.id: (outcome.status, outcome.why) for outcome in job.outcomes.values()}

    def test_a_command_is_one_test(self):
        self.assertEqual(self.judged(jobs.Job("fmt", [], 9)), {"fmt": ("passed", "")})
        self.assertEqual(self.judged(jobs.Job("fmt", [], 9), status=None),
                         {"fmt": ("failed", "did not end within 9 s")})

    def test_doc_tests_count_one_by_one_and_none_is_a_failure(self):
        ran = self.judged(jobs.DocTests("docs", [], 9), "test a.rs - (line 3) ... ok",
                          "test b.rs - (line 4) ... FAILED", "test c.rs - (line 5) ... ignored",
                          status=101)
        self.assertEqual(ran, {"a.rs - (line 3)": ("passed", ""),
                               "b.rs - (line 4)": ("failed", "failed"),
                               "c.rs - (line 5)": ("skipped", "ignored")})
        self.assertEqual(self.judged(jobs.DocTests("docs", [], 9)),
                         {"docs": ("failed", "no test ran")})
        self.assertIn("docs", self.judged(jobs.DocTests("docs", [], 9), "test a ... ok", status=1))

    def test_python_tests_count_one_by_one(self):
        ran = self.judged(
            jobs.PythonTests("vm", [], 9),
            "test_a (test.Run.test_a) ... ok",
            "test_b (test.Run.test_b)", "About b. ... vm: chatter", "FAIL",
            "test_c (test.Run.test_c) ... skipped 'boots machines'", "",
            "Ran 3 tests in 0.1s", status=1)
        self.assertEqual(ran, {
            "vm: test_a (test.Run.test_a)": ("passed", ""),
            "vm: test_b (test.Run.test_b)": ("failed", "fail"),
            "vm: test_c (test.Run.test_c)": ("skipped", "boots machines")})

    def test_python_tests_that_do_not_add_up_fail(self):
        self.assertIn("vm", self.judged(jobs.PythonTests("vm", [], 9), "Ran 0 tests in 0.0s"))
        self.assertIn("vm", self.judged(jobs.PythonTests("vm", [], 9), status=1))
        self.assertIn("vm", self.judged(
            jobs.PythonTests("vm", [], 9), "test_a (t.R.test_a) ... ok", "Ran 2 tests in 0.1s"))

    def test_cargos_messages_name_binaries_by_package_and_target(self):
        build = jobs.Build("build", [], 9)
        def message(package, kind, name, test=True):
            return json.dumps({
                "reason": "compiler-artifact", "package_id": package, "executable": "/t/x",
                "manifest_path": "/r/p/Cargo.toml", "profile": {"test": test},
                "target": {"kind": [kind], "name": name}})
        for line in (message("path+file:///r/tests#syrup-tests@0.1.0", "test", "kernels"),
                     message("path+file:///r/syrupd#0.1.0", "lib", "syrupd"),
                     message("path+file:///r/syrupd#0.1.0", "bin", "syrupd"),
                     message("path+file:///r/syrupd#0.1.0", "bin", "syrupd", test=False)):
            build.line(line)
        self.assertEqual([name for name, _, _ in build.binaries],
                         ["syrup-tests/kernels", "syrupd/lib", "syrupd/syrupd"])


class Plan(unittest.TestCase):
    def test_has_no_two_guests_of_one_name(self):
        names = [guest.name for guest in plan.GUESTS]
        self.assertEqual(len(names), len(set(names)))


class Interrupted(Fakes):
    def test_a_run_ends_at_once_and_leaves_nothing(self):
        self.binary("fake/one", f"""
            def test_a():
                child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
                os.mkdir(os.environ["TMPDIR"] + "/left")
                open({str(self.folder / 'pid.new')!r}, "w").write(
                    f"{{child.pid}} {{os.environ['TMPDIR']}}")
                os.rename({str(self.folder / 'pid.new')!r}, {str(self.folder / 'pid')!r})
                time.sleep(1000)
            """)
        # As a shell does with what it starts in the background, perhaps these tests too.
        def ignore_sigint():
            signal.signal(signal.SIGINT, signal.SIG_IGN)

        def heed_sigint():
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        for number, before in ((signal.SIGINT, heed_sigint), (signal.SIGTERM, heed_sigint),
                               (signal.SIGTERM, ignore_sigint), (signal.SIGKILL, heed_sigint)):
            with self.subTest(signal=number, before=before):
                (self.folder / "pid").unlink(missing_ok=True)
                script = textwrap.dedent(f"""
                    import sys
                    from pathlib import Path
                    sys.path.insert(0, {str(ROOT / 'tests')!r})
                    from runner import jobs, main
                    def run(self):
                        build = jobs.Build("build", ["true"], 10)
                        build.binaries = [("fake/one", Path({str(self.binaries[0][1])!r}),
                                           Path({str(self.folder)!r}))]
                        self.folder = Path({str(self.folder)!r})
                        self.add(build)
                        self.scheduler.run()
                    main.Run.run = run
                    sys.exit(main.main([]))
                    """)
                child = subprocess.Popen([sys.executable, "-B", "-c", script], preexec_fn=before,
                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                self.addCleanup(child.kill)
                wait_for(lambda: (self.folder / "pid").exists())
                pid, temporary = (self.folder / "pid").read_text().split()
                child.send_signal(number)
                began = time.monotonic()
                _, errors = child.communicate(timeout=20)
                if number == signal.SIGKILL:
                    # Its jobs hear of it and end themselves.
                    wait_for(lambda: not agent.stat(pid) and not os.path.exists(temporary))
                    continue
                self.assertEqual(child.returncode, 130, errors)
                self.assertIn("interrupted", errors)
                self.assertLess(time.monotonic() - began, 5)
                self.assertIsNone(agent.stat(pid), "a test's child lives")
                self.assertFalse(os.path.exists(temporary), "its temporary files are left")


def wait_for(condition, limit_s=20):
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("waited in vain")
        time.sleep(0.01)


if __name__ == "__main__":
    unittest.main()
