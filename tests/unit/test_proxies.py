"""Which requests go by the environment's proxy: none to this machine, all others."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest

from posedrop.buckets.storage import Storage
from posedrop.client import Client, UnreachableError
from posedrop.errors import ConfigurationError, PosedropError, StorageError
from posedrop.minio import sdk
from posedrop.proxies import ProxyTransport, proxy_of
from posedrop.settings import Settings

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
OURS = socket.gethostname()
STORE = {"s3_access_key": "key", "s3_secret_key": "secret"}


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Proxy:
    """One that counts, and refuses what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def refuse(self) -> None:
                asked.append(f"{self.command} {self.path}")
                self.send_error(403)

            do_GET = do_HEAD = do_PUT = do_POST = do_CONNECT = refuse  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.server.shutdown()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8333",
        "http://127.1.2.3/x",
        "http://localhost:8080/healthz",
        "https://LOCALHOST.:8080",
        "http://store.localhost:1",
        "http://[::1]:8333/videos",
        "http://0.0.0.0:8333",
        f"http://{OURS}:8333",
        "http://minio:9000/videos?list-type=2",
        "http://[not an address",
        "",
    ],
)
@pytest.mark.parametrize("value", ["http://proxy.lab:3128", "socks5://proxy.lab", "nonsense://"])
def test_what_is_near_is_asked_directly_whatever_the_proxy(
    url: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, value)
    assert proxy_of(url) is None


@pytest.mark.parametrize(
    ("variables", "url", "expected"),
    [
        ({"HTTP_PROXY": "http://p:1"}, "http://store.lab:9000", "http://p:1"),
        ({"HTTP_PROXY": "http://p:1"}, "https://store.lab", None),
        ({"http_proxy": "p:3128"}, "http://198.51.100.7", "http://p:3128"),
        ({"https_proxy": "http://u:secret@p:1"}, "https://s3.amazonaws.com", "http://u:secret@p:1"),
        ({"all_proxy": "http://p:1"}, "http://store.lab", "http://p:1"),
        ({"all_proxy": "socks5://p", "http_proxy": "http://p:1"}, "http://store.lab", "http://p:1"),
        ({"http_proxy": "http://p:1", "no_proxy": "other,.lab"}, "http://store.lab", None),
        ({"http_proxy": "http://p:1", "no_proxy": "store.lab:9000"}, "http://store.lab:9000", None),
        ({"http_proxy": "http://p:1", "NO_PROXY": "*"}, "http://store.lab", None),
        ({"http_proxy": "http://p:1", "NO_PROXY": "198.51.100.0/24"}, "http://198.51.100.7", None),
        ({"http_proxy": "http://p:1", "NO_PROXY": "x/y"}, "http://198.51.100.7", "http://p:1"),
        ({"http_proxy": ""}, "http://store.lab", None),
        ({}, "http://store.lab", None),
    ],
)
def test_what_is_far_follows_the_environment(
    variables: dict[str, str], url: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(url) == expected


@pytest.mark.parametrize(
    "value",
    ["socks5://u:secret@p:1080", "ftp://p", "http://", "http://p:99999", "http://[p", "p:x"],
)
def test_a_proxy_that_is_of_no_use_is_told_once_it_is_needed(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In words, and without the password in it; a client is made all the same."""
    monkeypatch.setenv("ALL_PROXY", value)
    with Client("http://posedrop.lab:8080") as client, pytest.raises(ConfigurationError) as caught:
        client.file("mfzgs3tfebzw63lf")
    assert "NO_PROXY" in caught.value.message
    assert "posedrop.lab" in caught.value.message
    assert "secret" not in caught.value.message


def ask_api(host: str) -> None:
    with Client(f"http://{host}") as client:
        client.file("mfzgs3tfebzw63lf")


def ask_store(host: str) -> None:
    Storage(Settings(s3_endpoint=f"http://{host}", **STORE)).read("videos", "key")


def ask_minio(host: str) -> None:
    client = sdk.connect(Settings(s3_endpoint=f"http://{host}"), "key", "secret")
    with sdk.translated("look at the bucket"):
        client.bucket_exists(bucket_name="videos")


def ask_presigned(host: str) -> None:
    with httpx.Client(transport=ProxyTransport()) as client:
        client.get(f"http://{host}").raise_for_status()


@pytest.mark.parametrize(
    "ask", [ask_api, ask_store, ask_minio, ask_presigned], ids=lambda f: f.__name__
)
def test_each_of_our_clients_keeps_to_it(
    ask: Callable[[str], None], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    wrong = (PosedropError, httpx.HTTPError)
    with socket.socket() as nobody:  # bound, so that nobody else listens there
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(wrong):
            ask(f"127.0.0.1:{nobody.getsockname()[1]}")
    assert proxy.asked == []
    with pytest.raises(wrong):
        ask("store.lab:9000")
    assert proxy.asked
    assert "http://store.lab:9000/" in proxy.asked[0]


def test_the_users_own_aws_settings_are_not_in_the_way_of_another_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Where all is told: no profile, no damaged file, no endpoint of AWS's; on AWS, in words."""
    config = tmp_path / "config"
    config.write_text("[profile\nnonsense")
    for name, value in {
        "AWS_CONFIG_FILE": str(config),
        "AWS_PROFILE": "of-another-lab",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_MAX_ATTEMPTS": "many",
        "AWS_SESSION_TOKEN": "stale",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "nonsense",
    }.items():
        monkeypatch.setenv(name, value)
    own = Storage(Settings(s3_endpoint="http://127.0.0.1:9", **STORE))
    url = own.presign_get("videos", "key", content_type="video/mp4", filename="f")
    assert url.startswith("http://127.0.0.1:9/videos/key?")
    assert "stale" not in url
    with pytest.raises(ConfigurationError, match="AWS_"):
        Storage(Settings())


def test_an_endpoint_that_is_none_is_told_in_words() -> None:
    with pytest.raises(ConfigurationError, match="POSEDROP_S3_ENDPOINT"):
        Storage(Settings(s3_endpoint="minio:9000", **STORE))


def test_errors_stay_those_of_the_way_taken(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a proxy refuses is no answer of the API's, nor of the store's."""
    proxy.server.shutdown()
    proxy.server.server_close()
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    with pytest.raises(UnreachableError, match="by the proxy"):
        ask_api("posedrop.lab:8080")
    with pytest.raises(StorageError):
        ask_store("store.lab:9000")
