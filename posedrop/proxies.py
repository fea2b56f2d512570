"""Which proxy a request goes by: the environment's, but never for what stands on this machine.

Variables for a proxy (``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``, in small letters too) are
set for a whole laboratory, often without ``NO_PROXY``. A proxy knows another ``127.0.0.1`` than
ours, so loopback, this machine's own addresses, and names without a dot (compose's ``minio``) are
always asked directly. All else follows the environment, ``NO_PROXY`` included.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from posedrop.address import is_loopback
from posedrop.errors import ConfigurationError


def proxy_of(url: str) -> str | None:
    """Return the URL of the proxy that a request for ``url`` goes by, None if it goes directly.

    Raises:
        ConfigurationError: the environment names a proxy for it that can't be used.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        return None  # no address at all: whoever asks it says so
    known = getproxies()
    proxy = known.get(parts.scheme) or known.get("all")
    if not proxy or is_near(host) or proxy_bypass(parts.netloc) or _excepted(host, known):
        return None
    return _checked(proxy if "://" in proxy else f"http://{proxy}", host)


def is_near(host: str) -> bool:
    """Tell whether ``host`` is this machine, or a name that only the network at hand knows."""
    if is_loopback(host) or host.endswith(".localhost") or host == socket.gethostname().lower():
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return "." not in host
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))  # only an address of this machine can be taken
        except OSError:
            return False
    return True


def proxies_for_boto3(endpoint: str | None) -> dict[str, str] | None:
    """Return botocore's setting ``proxies`` for an endpoint; None has it ask the environment."""
    if endpoint is None:
        return None  # AWS: a host for each bucket
    proxy = proxy_of(endpoint)
    return {} if proxy is None else {urlsplit(endpoint).scheme: proxy}


class ProxyTransport(httpx.BaseTransport):
    """httpx's transport, by the proxy of each request's own host.

    httpx itself reads the environment once, for all hosts, and refuses to begin where any variable
    names a proxy that it can't use.
    """

    def __init__(self) -> None:
        """Nothing is opened yet."""
        self._by_proxy: dict[str | None, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; errors are httpx's, and those of :func:`proxy_of`."""
        proxy = proxy_of(str(request.url))
        if proxy not in self._by_proxy:
            self._by_proxy[proxy] = httpx.HTTPTransport(proxy=proxy)
        return self._by_proxy[proxy].handle_request(request)

    def close(self) -> None:
        """End the connections."""
        for transport in self._by_proxy.values():
            transport.close()


def _excepted(host: str, known: dict[str, str]) -> bool:
    """Tell whether ``NO_PROXY`` has a network, such as ``10.0.0.0/8``, that ``host`` is in."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    for each in known.get("no", "").split(","):
        try:
            if "/" in each and address in ip_network(each.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False


def _checked(proxy: str, host: str) -> str:
    try:
        parts = urlsplit(proxy)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        # What may be a password is not shown.
        shown = f"{proxy.partition('://')[0]}://...{proxy.rpartition('@')[2].rpartition('/')[2]}"
        raise ConfigurationError(
            f"the environment names the proxy {shown} for {host}, and posedrop can only go by "
            f"http:// and https:// proxies: correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, or add "
            f"{host} to NO_PROXY"
        )
    return proxy
