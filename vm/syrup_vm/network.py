"""Whether a download failed because of the network or the server.

Only then may a test be skipped: a broken configuration of apt or a broken
Python must not pass for a mirror that is away."""

import re

from . import Error, Unavailable

# What apt's methods, pip and the C library say.
_REASONS = re.compile(
    r"Could not (resolve|connect)|Temporary failure (resolving|in name resolution)"
    r"|Name or service not known|Unable to connect|Cannot initiate the connection"
    r"|Connection (timed out|failed|refused|reset)|Network is unreachable|No route to host"
    r"|Failed to establish a new connection|[Rr]ead timed out|ConnectTimeout|ProxyError"
    r"|\b(404  ?Not Found|50[0-9] |HTTP error 50[0-9])"
    r"|Max retries exceeded"
)


def failure(what: str, said: str) -> Error:
    """The error for command `what`, which failed and said `said`."""
    kind = Unavailable if _REASONS.search(said) else Error
    return kind(f"{what} failed:\n{said.strip()}")
