"""Runs commands in a virtual machine on a kernel with (or without) sched_ext.

cache     where downloads and answers are kept, one writer at a time
debian    packages of any Debian suite, without touching the machine's apt
btf       what a kernel image says about its sched_ext
kernels   from a role ("default") to a kernel image
tools     virtme-ng and virtiofsd
accel     does a guest really boot with KVM here
machine   one virtual machine, from boot to exit status
"""


class Error(Exception):
    """A failure whose message already says what to do about it."""


class Unavailable(Error):
    """Something to be downloaded cannot be had: not in the archive any more,
    or no network. Its own class because a test may skip for this reason and
    for no other."""
