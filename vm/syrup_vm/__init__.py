"""Runs commands in a virtual machine on a kernel with (or without) sched_ext.

cache     where downloads and answers are kept, one writer at a time
debian    packages of any Debian suite, without touching the machine's apt
network   whether a download failed because of the network
btf       what a kernel image says about its sched_ext
kernels   from a role ("newest") or a path to a kernel image
tools     virtme-ng and virtiofsd
accel     does a guest really boot with KVM here
machine   one virtual machine, from boot to exit status
record    what is kept of each guest
judge     what the guest's kernel said, and whether that is acceptable
emulator  the one death of a guest that is excused
"""


class Error(Exception):
    """A failure whose message already says what to do about it."""


class Unavailable(Error):
    """Something to be downloaded cannot be had: not in the archive any more,
    or no network (network.py). Its own class because a test may skip for this
    reason and for no other."""
