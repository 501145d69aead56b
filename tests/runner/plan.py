"""Which tests run where, and how long they may take.

A new hook that needs a kernel of its own is a line in GUESTS. A test target that
is named there runs in guests only, every other one natively; a test that no line
selects fails the run.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Guest:
    """One virtual machine and the tests that it runs."""

    name: str
    # A role of vm/run.
    kernel: str
    # "PACKAGE/TARGET", or "PACKAGE/TARGET::PREFIX" for those tests alone.
    tests: tuple[str, ...]
    cpus: int = 4
    memory: str = "2G"
    # Guest time counts instructions: for tests that measure.
    icount: bool = False
    # For all its tests, without the boot: twice what a busy host took. And for each: what
    # hangs ends by this one.
    limit_s: float = 1800
    test_limit_s: float = 300
    # What it took when it was last looked at, until this machine knows better.
    expected_s: float = 60


THREAD_HOOK = ("syrup-scx/thread_hook", "syrup-tests/thread_hook")

GUESTS = (
    Guest("thread-newest", "newest", THREAD_HOOK, expected_s=450),
    Guest("thread-oldest", "oldest", THREAD_HOOK, expected_s=450),
    # Two cores to measure and one for the rest, which take turns on one of the host.
    Guest("thread-time", "newest", ("syrup-scx/thread_time",), cpus=3, icount=True,
          expected_s=120),
    # Hardened kernels let nobody trace functions, so what counts calls is shown here.
    Guest("cross-layer", "newest", ("syrup-tests/cross_layer", "syrup-net-hooks/changes"),
          expected_s=300),
    # Each call that is killed or refused loads and ejects the root: some seconds.
    Guest("killed", "newest", ("syrup-tests/killed_threads",), limit_s=2700, test_limit_s=900,
          expected_s=850),
    Guest("no-scx", "no-scx", ("syrup-tests/kernels::no_scx",)),
    Guest("malformed-btf", "malformed-btf", ("syrup-tests/kernels::malformed_btf",)),
)

# Without root on the host, tests that need it run here.
ROOT_GUEST = Guest("root", "newest", (), expected_s=300)

# A native test that takes longer hangs; the slowest take 40 s, and a busy host makes
# those that measure do it three times.
NATIVE_TEST_LIMIT_S = 300
