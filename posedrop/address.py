"""Where this machine listens, and how it is called from where."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from posedrop.errors import ConfigurationError

LOOPBACK = "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches ``host``."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int, what: str, option: str) -> socket.socket:
    """Return a listening socket: a port that is held can't be taken between check and use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"port {port} on {host}, meant for {what}, can't be used: {error.strerror}; "
            f"choose another with {option}"
        ) from error
    return listener


def is_free(host: str, port: int) -> bool:
    """Tell whether a TCP port can be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def reachable(host: str) -> str:
    """Return the address under which this machine itself reaches ``host``."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104


def outside(host: str) -> str:
    """Return the address under which other machines reach ``host``."""
    if host not in {"0.0.0.0", "::"}:  # noqa: S104
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: the system only says which of its addresses it would send from.
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def netloc(host: str, port: int) -> str:
    """Return host and port as a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
