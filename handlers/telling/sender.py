"""The process that sends one notice after the other: ``python -m handlers.telling.sender``.

It is a child of the handlers, killed when a receiver hangs. Whom it may connect to is checked at
the connection itself, so that no name, redirect or library leads to a private address. What it
prints goes nowhere, since libraries quote URLs, which are secrets.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import os
import sys
from typing import Any
from urllib.parse import urlsplit

#: How long a receiver may take for each step of a connection, in seconds.
_STEP_SECONDS = 10.0
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: A public address that answers for the machines of a cloud alone (Azure's wire server).
_METADATA = frozenset({ipaddress.IPv4Address("168.63.129.16")})


class RefusedAddressError(OSError):
    """An address that is private, or none."""


def is_public(host: str) -> bool:
    """Tell whether a numeric address is one of the internet, in whatever way it is wrapped."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        if address in _NAT64:
            mapped = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if mapped is not None:
            return is_public(str(mapped))
        if address not in _GLOBAL_UNICAST:
            return False
        wrapped = [address.sixtofour, *(address.teredo or ())]
        if any(each is not None and not is_public(str(each)) for each in wrapped):
            return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and address not in _METADATA
    )


def guard() -> None:
    """Have every connection of this process refused that does not go to a public address."""

    def check(event: str, args: tuple[Any, ...]) -> None:
        if event not in {"socket.connect", "socket.sendto", "socket.sendmsg"}:
            return
        address = args[1]
        if address is None:  # of a socket that is connected
            return
        if not isinstance(address, tuple) or not is_public(str(address[0])):
            refused.append(_REFUSED_WORDS)
            raise RefusedAddressError("a private address")

    sys.addaudithook(check)


def sign(secret: str, notice_id: str, timestamp: int, body: str) -> str:
    """Return the signature of a webhook, as Standard Webhooks has it: ``v1,<base64>``.

    Args:
        secret: ``whsec_<base64>``.
        notice_id: the header webhook-id.
        timestamp: the header webhook-timestamp, seconds.
        body: that is sent.
    """
    key = base64.b64decode(secret.removeprefix("whsec_") + "==")
    signed = hmac.digest(key, f"{notice_id}.{timestamp}.{body}".encode(), hashlib.sha256)
    return f"v1,{base64.b64encode(signed).decode()}"


def send_webhook(told: dict[str, Any]) -> str | None:
    """POST a webhook; return what is wrong, in words without a secret, None if it was taken."""
    import httpx

    if told.get("check"):
        return None  # the settings have looked at it
    url, _, secret = told["url"].partition("#")
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "posedrop",
        "webhook-id": told["id"],
        "webhook-timestamp": str(told["timestamp"]),
        "webhook-signature": sign(secret, told["id"], told["timestamp"], told["body"]),
    }
    try:
        with (
            # By a proxy, nobody could say where a connection leads.
            httpx.Client(timeout=_STEP_SECONDS, trust_env=told["allow_private"]) as client,
            client.stream("POST", url, content=told["body"].encode(), headers=headers) as answer,
        ):
            status = answer.status_code
    except httpx.TimeoutException:
        return "it did not answer in time"
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return _words(error)
    return None if 200 <= status < 300 else f"it answered {status}"


def send_apprise(told: dict[str, Any]) -> str | None:
    """Send a message by apprise; return what is wrong, None if it was sent."""
    import apprise
    from apprise.common import NotifyFormat, PersistentStoreMode

    asset = apprise.AppriseAsset(
        app_id="posedrop",
        app_desc="posedrop",
        secure_logging=True,
        async_mode=False,
        storage_mode=PersistentStoreMode.MEMORY,
    )
    try:
        service = apprise.Apprise.instantiate(told["url"], asset=asset, suppress_exceptions=True)
    except Exception as error:
        return _words(error)
    if not service:
        return "its URL is none that apprise knows: correct it in POSEDROP_NOTIFY_URLS"
    if told.get("check"):
        return None
    known = apprise.Apprise(asset=asset)
    known.add(service)
    refused.clear()
    sent = known.notify(title=told["title"], body=told["body"], body_format=NotifyFormat.TEXT)
    return None if sent else (refused[0] if refused else "it was not taken")


#: What the guard refused while apprise, which swallows errors, was sending.
refused: list[str] = []
_REFUSED_WORDS = "its address is a private one (POSEDROP_NOTIFY_ALLOW_PRIVATE=true allows that)"


def _words(error: BaseException | None) -> str:
    """Return what an error means, without the words of a library, which may quote a URL."""
    while error is not None:
        if isinstance(error, RefusedAddressError) or "a private address" in str(error):
            return _REFUSED_WORDS
        if error.__cause__ is None and error.__context__ is None:
            break
        error = error.__cause__ or error.__context__
    return f"it can't be reached ({type(error).__name__})"


def main() -> None:
    """Read notices, a JSON line each, and answer each with a line."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    is_guarded = False
    for line in sys.stdin:
        told = json.loads(line)
        if not told["allow_private"] and not is_guarded:
            guard()
            is_guarded = True
        kind = urlsplit(told["url"]).scheme
        try:
            error = send_webhook(told) if kind in {"http", "https"} else send_apprise(told)
        except Exception as broken:  # a library's: the next notice is another one
            error = _words(broken)
        answers.write(json.dumps({"error": error}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
