"""The process that sends notices: signed, bounded, and to nobody who is private."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from handlers.telling import sender
from handlers.telling.receiver import Child
from posedrop.errors import ConfigurationError
from posedrop.settings import Settings, load
from tests.support.receivers import PUBLIC, mail_relay, pretend_names, receiver, send

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYq="
PRIVATE = "its address is a private one (POSEDROP_NOTIFY_ALLOW_PRIVATE=true allows that)"


def settings_with(folder: Path, *, allow: bool, **urls: str) -> Settings:
    return load(folder, {"notify_urls": urls, "notify_allow_private": allow})


def test_a_webhook_is_signed_as_the_standard_says_and_errors_name_no_secret(
    tmp_path: Path,
) -> None:
    with receiver([500, 302, 0]) as server:
        url = f"http://{server.address}/in/T0KEN#{SECRET}"
        child = Child(settings_with(tmp_path, allow=True, hook=url), "hook", seconds=60)
        said = []
        try:
            for seconds in (60, 60, 2, 60):  # its process is there by the third, and gone behind it
                child._seconds = seconds
                said.append(child.send("msg_1", "", '{"type": "run.over"}'))
        finally:
            child.close()
    assert said == ["it answered 500", "it answered 302", "it took longer than 2 s", None]
    for headers, body in server.got:
        Webhook(SECRET).verify(body, headers)
        assert headers["webhook-id"] == "msg_1"


def test_people_are_told_by_apprise_and_by_a_relay_of_the_house_if_that_is_allowed() -> None:
    with receiver([500]) as server, mail_relay() as (port, letters):
        chat = f"json://u:S3CRET@{server.address}/x"
        mail = f"mailto://localhost:{port}?from=a@b.org&to=lab@c.org"
        assert send([chat, mail, chat], allow=True) == (["it was not taken", None, None], "")
        assert send([chat, mail]) == ([PRIVATE, PRIVATE], "")
    assert json.loads(server.got[-1][1])["message"] == "b"
    assert len(server.got) == 2
    (letter,) = letters
    assert "Subject: t" in letter


def test_nobody_private_is_told_whatever_it_is_called(tmp_path: Path) -> None:
    with receiver() as server:
        names = {"rebound.example": [PUBLIC, "127.0.0.1"], "inside.example": ["127.0.0.1"]}
        hosts = [
            "localhost", "localhost.", "LOCALHOST", "127.0.0.1", "127.1", "127.0.0.1.",
            "2130706433", "0x7f.1", "0177.0.0.1", "0", "[::1]", "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]", "[fe80::1%25lo]", "169.254.169.254", "[64:ff9b::7f00:1]",
            "inside.example",
        ]  # fmt: skip
        urls = [
            f"{scheme}://u:S3CRET@{host}:{server.port}/T0KEN{end}"
            for host in hosts
            for scheme, end in (("http", f"#{SECRET}"), ("json", ""))
        ]
        # First it is a public one, which is told; by then the name means another.
        urls += [f"http://rebound.example:{server.port}/T0KEN#{SECRET}"] * 2
        said, printed = send(urls, pretend_names(tmp_path, names))
    assert len(said) == len(urls)
    assert said[-2:] == [None, PRIVATE]
    assert len(server.got) == 1
    assert printed == ""
    for url, words in zip(urls[:-2], said, strict=False):
        assert words, url
        # A name that nobody knows, or a URL that is none, is refused in other words.
        assert words == PRIVATE or not url.partition("@")[2].startswith(("127.0.0.1:", "inside"))
        assert not any(secret in words for secret in ("S3CRET", "T0KEN", SECRET, "example"))


def test_a_redirect_leads_to_nobody_private(tmp_path: Path) -> None:
    with receiver() as inside, receiver() as server:
        server.answers += [f"http://{inside.address}/latest", 204] * 2
        inside_again = f"http://inside.example:{inside.port}/latest"
        server.answers += [f"http://{PUBLIC}:{server.port}/moved", inside_again]
        environment = pretend_names(
            tmp_path, {"public.example": [PUBLIC], "inside.example": ["127.0.0.1"]}
        )
        hook = f"http://public.example:{server.port}/T0KEN#{SECRET}"
        chat = f"json://public.example:{server.port}/T0KEN"
        said, _ = send([hook, hook, chat, chat, chat], environment)
    assert said == ["it answered 307", None, PRIVATE, None, PRIVATE]
    assert inside.got == []


@pytest.mark.parametrize(
    ("host", "is_public"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("64:ff9b::5db8:d822", True), ("10.1.2.3", False), ("172.16.0.1", False),
        ("192.168.0.1", False), ("127.0.0.1", False), ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("169.254.169.254", False), ("100.100.100.200", False), ("168.63.129.16", False),
        ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False), ("fe80::1%eth0", False),
        ("fd00:ec2::254", False), ("::ffff:10.0.0.1", False), ("::7f00:1", False),
        ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False), ("64:ff9b:1::1", False),
        ("ff02::1", False), ("localhost", False), ("0x7f000001", False), ("2130706433", False),
    ],
)  # fmt: skip
def test_an_address_is_public_however_it_is_wrapped(host: str, is_public: bool) -> None:
    assert sender.is_public(host) is is_public


@pytest.mark.parametrize(
    "value",
    ["mailto://u:PASS@h", '{"a": "PASS"}', '{"a": "https://h/PASS"}', '{"PASS x": "json://h"}'],
)
def test_a_wrong_setting_is_told_without_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("POSEDROP_NOTIFY_URLS", value)
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path)
    error: BaseException | None = caught.value
    assert "NOTIFY_URLS" in str(error).upper()
    assert "PASS" not in str(error)
    assert caught.value.__suppress_context__
