"""Settings: variables ``POSEDROP_*`` (or the file that ``posedrop up`` keeps) -> frozen.

A wrong value stops the start with its name; nothing reads the environment later.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from posedrop.errors import ConfigurationError
from posedrop.folders import check_own_file, user_id

#: Where ``posedrop up`` leaves the settings of its own stack, inside its data directory.
ENV_FILE = "posedrop.env"
#: Where compose mounts secrets, one a file, e.g. ``posedrop_s3_secret_key``.
SECRETS_DIR = Path("/run/secrets")
DEFAULT_DATA_DIR = Path("posedrop-data")
#: A token as a header can carry it.
_SENDABLE = re.compile("[!-~]+")
#: A value that needs no quotes in a file of variables.
_BARE = re.compile("[A-Za-z0-9_./:@%+,-]*")
_ALIAS = re.compile("[a-z0-9][a-z0-9_-]{0,39}")
_SIGNED = re.compile("#whsec_[A-Za-z0-9+/]{32,88}={0,2}$")
#: Variables that are read elsewhere: keys of `posedrop bootstrap`, how much the tests do.
_NO_SETTINGS = frozenset({
    "POSEDROP_CI",
    "POSEDROP_FULL_SIZE",
    "POSEDROP_MINIO",
    *(f"POSEDROP_{who}_{what}_KEY" for who in ("ROOT", "HANDLERS", "WORKER")
      for what in ("ACCESS", "SECRET")),
})  # fmt: skip
_MAKE_ONE = "make one with `openssl rand -hex 20`"


class Settings(BaseSettings):
    """All that can be set, for handlers and workers alike."""

    model_config = SettingsConfigDict(env_prefix="POSEDROP_", frozen=True, extra="ignore")

    data_dir: Path = Field(
        default=DEFAULT_DATA_DIR,
        description="folder of `posedrop up`; a posedrop.env in it is read",
    )
    scratch_dir: Path = Field(
        default_factory=lambda: Path(tempfile.gettempdir()) / f"posedrop-{user_id()}",
        description="local files of running jobs; emptied at start",
    )

    s3_endpoint: str | None = Field(default=None, description="unset: AWS")
    s3_public_endpoint: str | None = Field(
        default=None,
        description="as clients reach it: presigned URLs are made for this one. `posedrop up` "
        "takes it from the environment alone",
    )
    s3_region: str = Field(default="us-east-1", description="of the store; MinIO takes any")
    s3_access_key: str | None = Field(default=None, description="unset: boto3's own search")
    s3_secret_key: SecretStr | None = Field(default=None, description="goes with the access key")
    presign_access_key: str | None = Field(
        default=None, description="a key that can only put videos"
    )
    presign_secret_key: SecretStr | None = Field(
        default=None, description="goes with the key that can only put videos"
    )
    videos_bucket: str = Field(default="videos", description="films are put here")
    results_bucket: str = Field(default="results", description="what comes of them")
    models_bucket: str = Field(default="models", description="models that were pushed")

    broker_url: str = Field(
        default="stub://",
        pattern=r"^(stub|redis|rediss|amqp|amqps)://",
        description="the queue: redis://, rediss://, amqp://, amqps://; stub:// is within "
        "`posedrop up`",
    )
    index_path: Path | None = Field(default=None, description="SQLite; default: in data_dir")

    index_timeout_seconds: float = Field(
        default=5.0, gt=0, description="a locked index is waited for; then callers are told 503"
    )

    sqs_queue_url: str | None = Field(
        default=None, description="AWS: the queue that S3 notifies, polled by the handlers"
    )
    sqs_endpoint: str | None = Field(default=None, description="unset: AWS")

    events_token: SecretStr | None = Field(default=None, description="bearer token of POST /events")
    api_token: SecretStr | None = Field(
        default=None, description="asked of every caller; `posedrop up` makes one"
    )
    metrics_token: SecretStr | None = Field(
        default=None, description="bearer token that may read GET /metrics, and do nothing else"
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="a worker's own metrics; unset: none. On loopback alone without metrics_token",
    )
    url: str = Field(default="http://127.0.0.1:8080", description="the API, for the command line")

    default_analysis: str | None = Field(
        default=None, description="for videos about which nobody said anything"
    )
    default_args: dict[str, Any] = Field(
        default_factory=dict, description="its arguments (JSON), the model for one"
    )

    notify_urls: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="who is told, by aliases (JSON): https://HOST/PATH#whsec_... is a webhook, "
        "others are apprise's URLs",
    )
    notify: list[str] = Field(
        default_factory=list,
        description="aliases (JSON) that are told of runs that no posedrop.json has started",
    )
    notify_allow_private: bool = Field(
        default=False, description="receivers may have private addresses, or stand behind a proxy"
    )
    notify_retry_seconds: float = Field(
        default=10.0, gt=0, description="the first pause after a notice failed; each is thrice"
    )

    max_video_bytes: int = Field(
        default=200 * 2**30, gt=0, description="of a film; a larger one is refused"
    )
    max_pixels: int = Field(
        default=4096 * 4096, gt=0, description="of a frame; larger ones are refused"
    )
    max_frames: int = Field(
        default=20_000_000, gt=0, description="of a film; a longer one is refused"
    )
    presign_seconds: int = Field(
        default=900, ge=1, le=7 * 86400, description="for which a presigned URL is good"
    )
    multipart_bytes: int = Field(
        default=64 * 2**20, ge=5 * 2**20, description="files above this go up in parts of this size"
    )

    heartbeat_seconds: float = Field(
        default=2.0, gt=0, description="between two signs of life of a worker at work"
    )
    lease_seconds: float = Field(
        default=60.0, gt=0, description="a worker silent for longer is taken for dead"
    )
    max_attempts: int = Field(
        default=3,
        ge=1,
        description="of a run whose workers die before they keep anything; then it has failed",
    )
    turn_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="a run that has had the network for longer lets another group go first, at its "
        "next checkpoint, if one waits",
    )
    reconcile_seconds: float = Field(
        default=60.0,
        gt=0,
        description="between two rounds that compare buckets, index and queue: 20,000 objects "
        "each at most",
    )
    retention_days: float | None = Field(
        default=None,
        gt=0,
        description="films older than this, by the store's clock, go with their results; "
        "unset: never",
    )
    orphans: Literal["keep", "delete"] = Field(
        default="keep", description="what becomes of the results of films that an S3 tool removed"
    )
    high_water_bytes: int | None = Field(
        default=None,
        gt=0,
        description="of videos and results: above it the films finished first go, then results; "
        "unset: never",
    )
    low_water_bytes: int | None = Field(
        default=None, gt=0, description="down to which they go then; unset: 90 % of the other"
    )
    expire_share: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="the share of all films that may go at once; more, and a person is asked "
        "(posedrop expire)",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    decode: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="who decodes films for the network; auto: an NVIDIA card that the network runs "
        "on, if that is faster; cuda: one, if it can",
    )
    encode: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="who encodes pose.mp4; auto, cuda: an NVIDIA card, if one can (NVENC)",
    )
    checkpoint_seconds: float = Field(
        default=60.0, gt=0, description="work that a killed inference loses at most"
    )
    child_memory_bytes: int | None = Field(
        default=None,
        ge=2**29,
        description="what the child that probes and draws may have of memory (RLIMIT_DATA); "
        "unset: half of the machine's, or of its cgroup's",
    )
    child_file_bytes: int | None = Field(
        default=None,
        gt=0,
        description="the largest file that it may write (RLIMIT_FSIZE), pose.mp4 for one; "
        "unset: half of the disk of scratch_dir",
    )
    network_memory_bytes: int | None = Field(
        default=None,
        ge=2**29,
        description="what a child that runs networks may have of memory, with all that it starts; "
        "unset: nine tenths of the machine's, or of its cgroup's",
    )
    child_reads: list[Path] = Field(
        default_factory=list,
        description="files and folders that plug-ins read, beside what is installed (JSON)",
    )
    cache_bytes: int = Field(
        default=20 * 2**30,
        ge=0,
        description="of videos, and of models, kept on a worker's disk; a quarter of it at most",
    )
    model_bytes: int = Field(
        default=2 * 2**30,
        ge=0,
        description="of models that a worker keeps loaded, in its memory or its accelerator's; "
        "the one in use stays in any case",
    )

    @field_validator(
        "s3_secret_key", "presign_secret_key", "events_token", "api_token", "metrics_token"
    )
    @classmethod
    def _secrets_are_not_empty(cls, value: SecretStr | None) -> SecretStr | None:
        # An empty token would let everybody in, or nobody, and neither says why.
        if value is not None and not value.get_secret_value().strip():
            raise ValueError(f"it is empty; {_MAKE_ONE}, or don't set it at all")
        return value

    @field_validator("events_token", "api_token", "metrics_token")
    @classmethod
    def _tokens_are_sendable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _SENDABLE.fullmatch(value.get_secret_value()):
            raise ValueError(f"a header can't carry it: no spaces, ASCII alone; {_MAKE_ONE}")
        return value

    @field_validator("notify_urls")
    @classmethod
    def _receivers_can_be_told(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for number, (alias, url) in enumerate(value.items(), 1):
            if not _ALIAS.fullmatch(alias):
                # No name is quoted: somebody may have put the URL there.
                raise ValueError(f"alias {number} is not of a-z, 0-9, - and _, 40 at most")
            scheme, colon, rest = url.get_secret_value().partition("://")
            if not colon or not rest:
                raise ValueError(f"{alias}: it is no URL")
            if scheme in {"http", "https"} and not _SIGNED.search(rest):
                raise ValueError(
                    f"{alias}: a webhook ends with #whsec_ and a secret of 24 to 64 bytes in "
                    "base64: `echo whsec_$(openssl rand -base64 32)`"
                )
        return value

    @model_validator(mode="after")
    def _keys_come_in_pairs(self) -> Settings:
        for access, secret in (
            ("s3_access_key", "s3_secret_key"),
            ("presign_access_key", "presign_secret_key"),
        ):
            if (getattr(self, access) is None) != (getattr(self, secret) is None):
                both = f"POSEDROP_{access.upper()} and POSEDROP_{secret.upper()}"
                raise ValueError(f"{both} go together: set both or neither")
        return self

    @model_validator(mode="after")
    def _tokens_differ(self) -> Settings:
        for name in ("api_token", "events_token"):
            token = getattr(self, name)
            if token is not None and token == self.metrics_token:
                raise ValueError(
                    f"POSEDROP_METRICS_TOKEN is POSEDROP_{name.upper()}: whoever may read metrics "
                    "could do all else; make one of its own"
                )
        return self

    @model_validator(mode="after")
    def _low_water_is_below(self) -> Settings:
        if self.low_water_bytes is not None and (
            self.high_water_bytes is None or self.low_water_bytes >= self.high_water_bytes
        ):
            raise ValueError(
                "POSEDROP_LOW_WATER_BYTES goes with a POSEDROP_HIGH_WATER_BYTES that is larger"
            )
        return self

    def check_aliases(self) -> None:
        """Check that everybody who is to be told can be: the handlers alone know the URLs.

        Raises:
            ConfigurationError: an alias of ``notify`` has no URL.
        """
        if unknown := set(self.notify) - self.notify_urls.keys():
            raise ConfigurationError(
                f"wrong setting: POSEDROP_NOTIFY: POSEDROP_NOTIFY_URLS has no {min(unknown)}"
            )

    @property
    def index_file(self) -> Path:
        """Where the SQLite index is."""
        return self.index_path or self.data_dir / "index.sqlite"


def as_env(configured: Settings) -> Iterator[str]:
    """Yield all that can be set as the lines of a file of variables: what it is, and its value.

    What is as it comes is commented out; a secret is not told.
    """
    for name, about in Settings.model_fields.items():
        value = getattr(configured, name)
        default = about.get_default(call_default_factory=True)
        yield f"# {about.description}"
        variable = f"POSEDROP_{name.upper()}"
        if value == default:
            yield f"#{variable}={'' if value is None else _as_text(value)}"
        elif _is_secret(value):
            yield f"#{variable}=(set, and not shown)"
        else:
            yield f"{variable}={_as_text(value)}"


def _is_secret(value: Any) -> bool:
    # A URL may have a password in it, as a broker's does.
    if isinstance(value, dict):
        return any(_is_secret(each) for each in value.values())
    return isinstance(value, SecretStr) or (isinstance(value, str) and "@" in value)


def _as_text(value: Any) -> str:
    text = str(value)
    if isinstance(value, dict | list):
        text = json.dumps(value, default=str).replace("'", r"\u0027")
    return (
        text
        if _BARE.fullmatch(text)
        else "'" + text.replace("\\", "\\\\").replace("'", r"\'") + "'"
    )


def unknown_variables(data_dir: Path) -> list[str]:
    """Return words about each ``POSEDROP_*`` variable that sets nothing: it may be misspelt."""
    file = data_dir / ENV_FILE
    places: list[tuple[Mapping[str, Any], str]] = [(os.environ, "the environment")]
    if file.is_file():
        places.append((dotenv_values(file), str(file)))
    known = [f"POSEDROP_{name.upper()}" for name in Settings.model_fields]
    found = []
    for variables, where in places:
        for name in sorted(variables):
            if not name.upper().startswith("POSEDROP_") or name.upper() in {*known, *_NO_SETTINGS}:
                continue
            near = difflib.get_close_matches(name.upper(), known, 1)
            meant = f"did you mean {near[0]}?" if near else "`posedrop settings` lists all"
            found.append(f"{name} (in {where}) sets nothing; {meant}")
    return found


def stack_scratch(configured: Settings) -> Path:
    """Return where the jobs of ``posedrop up`` have their files, DeepLabCut's shell in mind."""
    own = configured.data_dir.resolve() / "scratch"
    if "scratch_dir" in configured.model_fields_set or re.search(r"[^\w./+-]", str(own)):
        return configured.scratch_dir
    return own


def load(data_dir: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings: ``overrides``, else the environment, the data directory's file, secrets.

    Raises:
        ConfigurationError: a value is wrong, and the message names its variable; or the file is
            another user's.
    """
    where = data_dir or Path(os.environ.get("POSEDROP_DATA_DIR", DEFAULT_DATA_DIR))
    env_file = where / ENV_FILE
    if env_file.is_file():
        check_own_file(env_file)  # whoever says where the server is gets what is sent there
    secrets = SECRETS_DIR if SECRETS_DIR.is_dir() else None
    values: dict[str, Any] = {"data_dir": where, **(overrides or {})}
    try:
        return Settings(
            _env_file=env_file if env_file.is_file() else None,  # type: ignore[call-arg]
            _secrets_dir=secrets,
            **values,
        )
    except ValidationError as error:
        problems = "; ".join(
            f"POSEDROP_{'_'.join(map(str, e['loc'])).upper()}: {_said(e['msg'])}"
            if e["loc"]
            else _said(e["msg"])
            for e in error.errors()
        )
        raise ConfigurationError(f"wrong setting: {problems}") from None
    except SettingsError as error:  # it names the field, and its cause quotes the value
        raise ConfigurationError(f"wrong setting: {error}, is it JSON?") from None


def _said(message: str) -> str:
    return message.removeprefix("Value error, ")
