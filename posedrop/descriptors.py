"""The number of files and connections that this process may have open."""

from __future__ import annotations

from contextlib import suppress

try:
    import resource
except ImportError:  # on Windows, where the commands are that send films, and no server
    resource = None  # type: ignore[assignment]

#: More than are needed, and few enough that whoever walks through all of them is soon done.
_ENOUGH = 16_384


def raise_limit() -> int:
    """Raise the limit of open descriptors as far as an ordinary process may; return what it is.

    Many systems begin with 1,024, for programs that know no better; a store's event, a film and a
    page's stream are a descriptor each.
    """
    if resource is None:
        return _ENOUGH
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # some systems allow fewer than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
    return soft if soft != resource.RLIM_INFINITY else _ENOUGH
