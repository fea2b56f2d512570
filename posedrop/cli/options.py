"""The options before a command, and those that several commands share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click
from dotenv import dotenv_values

from posedrop import settings
from posedrop.buckets.storage import Storage
from posedrop.client import Client, tokens
from posedrop.errors import ConfigurationError
from posedrop.settings import ENV_FILE, Settings

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Options:
    """The options that stand before a command: the data directory, the API's URL."""

    data_dir: Path
    url: str | None
    _settings: Settings | None = field(default=None, repr=False)

    @property
    def settings(self) -> Settings:
        """The settings of the environment and of the data directory."""
        if self._settings is None:
            given = {} if self.url is None else {"url": self.url}
            self._settings = settings.load(self.data_dir, given)
        return self._settings

    def client(self) -> Client:
        """Return the API: the one that was named, else this machine's."""
        url = self.settings.url
        if "url" not in self.settings.model_fields_set and tokens.of(url) is None:
            url = tokens.latest() or url
        return Client(url, self._token(url), multipart_bytes=self.settings.multipart_bytes)

    def _token(self, url: str) -> str | None:
        """Return the token for the API at a URL; that of the data directory is for its own."""
        told = self.settings.api_token
        file = self.data_dir / ENV_FILE
        kept = dotenv_values(file) if file.is_file() else {}
        if told is None or (
            "POSEDROP_API_TOKEN" not in os.environ
            and told.get_secret_value() == kept.get("POSEDROP_API_TOKEN")
            and (kept.get("POSEDROP_URL") or url).rstrip("/") != url.rstrip("/")
        ):
            return tokens.of(url)
        return told.get_secret_value()

    def storage(self) -> Storage:
        """Return the object store.

        Raises:
            ConfigurationError: nothing says where it is.
        """
        told = any(name.startswith("POSEDROP_S3_") for name in os.environ)
        if not told and not (self.data_dir / ENV_FILE).is_file():
            raise ConfigurationError(
                f"{self.data_dir} holds no posedrop: start one with `posedrop up`, name its "
                "--data-dir, or set POSEDROP_S3_ENDPOINT and its keys"
            )
        return Storage(self.settings)


def _named_values(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    """Return ``name=value`` by name: the value as JSON if it is any, else as text."""
    named: dict[str, Any] = {}
    for each in values:
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{each!r} is not name=value", ctx, param)
        try:
            named[name] = json.loads(text)
        except ValueError:
            named[name] = text
    return named


def analysis_options(*, required: bool) -> Callable[[F], F]:
    """Return what gives a command --analysis and --arg, as ``analysis`` and ``args``."""

    def decorate(command: F) -> F:
        command = click.option(
            "--arg",
            "args",
            multiple=True,
            callback=_named_values,
            help="An argument of it, such as model=openfield; JSON, or else text. Repeatable.",
        )(command)
        return click.option(
            "--analysis",
            required=required,
            help="Such as deeplabcut_2d; `posedrop types` lists all.",
        )(command)

    return decorate


#: Gives a command --json, as ``as_json``.
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for a script.")
