"""`posedrop bootstrap`: make a MinIO ready for posedrop.

Buckets, notifications and three keys with least rights, with the root key that posedrop
itself never runs with. Every step looks first and changes only what differs, so that it may be run
at every deployment.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minio.error import MinioAdminException, S3Error
from minio.lifecycleconfig import LifecycleConfig
from minio.notificationconfig import NotificationConfig, QueueConfig
from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from posedrop import settings as settings_module
from posedrop.errors import ConfigurationError
from posedrop.folders import write_private
from posedrop.minio.notifications import EVENTS, TARGETS, how_to_set, plain, target_of
from posedrop.minio.policies import load_policy, same_policy
from posedrop.minio.sdk import connect, connect_admin, translated
from posedrop.settings import Settings

Say = Callable[[str], None]

POLICIES = Path(__file__).resolve().parent / "policy_files"
#: The rule of expiry that an older posedrop has made.
_RETENTION_RULE = "posedrop-retention"
_MIN_SECRET = 8
_TARGETS_SECONDS = 5.0


class BootstrapKeys(BaseSettings):
    """The root key, and the keys to make; a secret that is not given is made here."""

    model_config = SettingsConfigDict(env_prefix="POSEDROP_", frozen=True, extra="ignore")

    root_access_key: str | None = None
    root_secret_key: SecretStr | None = None
    handlers_access_key: str = "posedrop-handlers"
    handlers_secret_key: SecretStr | None = None
    worker_access_key: str = "posedrop-worker"
    worker_secret_key: SecretStr | None = None
    presign_access_key: str = "posedrop-presigner"
    presign_secret_key: SecretStr | None = None


@dataclass(frozen=True, slots=True)
class User:
    """A key to make: ``role`` names its policy's file, ``variable`` its environment variables."""

    role: str
    variable: str
    access_key: str
    secret_key: str | None
    made_here: bool = False

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of this key; none where the secret is not known."""
        if self.secret_key is None:
            return {}
        return {
            f"POSEDROP_{self.variable}_ACCESS_KEY": self.access_key,
            f"POSEDROP_{self.variable}_SECRET_KEY": self.secret_key,
        }


def load_keys(env_file: Path | None = None) -> BootstrapKeys:
    """Return the keys of the environment, else of ``env_file`` if it is there, else of secrets.

    Raises:
        ConfigurationError: a value is wrong; the message names its variable.
    """
    folder = settings_module.SECRETS_DIR
    try:
        return BootstrapKeys(
            _env_file=env_file if env_file is not None and env_file.is_file() else None,  # type: ignore[call-arg]
            _secrets_dir=folder if folder.is_dir() else None,
        )
    except ValidationError as error:
        names = ", ".join(f"POSEDROP_{str(e['loc'][0]).upper()}" for e in error.errors())
        raise ConfigurationError(f"wrong setting: {names}") from error


class Bootstrap:
    """The steps of `posedrop bootstrap`; each says what was done, or that nothing was to do."""

    def __init__(
        self, settings: Settings, keys: BootstrapKeys, say: Say, *, policies: Path = POLICIES
    ) -> None:
        """Nothing is asked of the store yet.

        Raises:
            ConfigurationError: the endpoint or the root key is missing.
        """
        if keys.root_access_key is None or keys.root_secret_key is None:
            raise ConfigurationError(
                "bootstrap works with MinIO's root key: set POSEDROP_ROOT_ACCESS_KEY and "
                "POSEDROP_ROOT_SECRET_KEY (MinIO's own MINIO_ROOT_USER, MINIO_ROOT_PASSWORD)"
            )
        secret = keys.root_secret_key.get_secret_value()
        self._settings = settings
        self._keys = keys
        self._say = say
        self._policies = policies
        self._client = connect(settings, keys.root_access_key, secret)
        self._admin = connect_admin(settings, keys.root_access_key, secret)

    def run(self, keep: Callable[[list[User]], None], *, rotate: bool = False) -> None:
        """Make the buckets, notifications and keys that lack, in this order.

        Args:
            keep: gets the keys before they are made, so that no secret is lost half-way.
            rotate: give every user whose secret is not given a new one.

        Raises:
            ConfigurationError: the server lacks what only its own environment can give.
            StorageError: the server did not do what was asked.
        """
        # First, so that a server that is not set up is left as it was.
        arns = self._targets()
        users = self._users()
        policies = {user.role: self._policy(user.role) for user in users}
        settings = self._settings
        for bucket in (settings.videos_bucket, settings.results_bucket, settings.models_bucket):
            self._bucket(bucket)
        for bucket in (settings.videos_bucket, settings.results_bucket):
            self._notify(bucket, arns)
        self._take_expiry_away(settings.videos_bucket)
        users = [self._with_secret(user, rotate=rotate) for user in users]
        keep(users)
        for user in users:
            self._user(user, policies[user.role])

    # -- webhook targets and notifications -------------------------------------------------------

    def _targets(self) -> dict[str, str]:
        # MinIO answers that it is ready up to a second before its targets are there.
        end = time.monotonic() + _TARGETS_SECONDS
        while True:
            arns = self._arns()
            missing = [name for name in TARGETS if name not in arns]
            if not missing:
                self._say("webhook targets fast and sure: there")
                return arns
            if time.monotonic() > end:
                raise ConfigurationError(how_to_set(missing))
            time.sleep(0.2)

    def _arns(self) -> dict[str, str]:
        with translated("ask MinIO for its webhook targets (is it MinIO, and is this its root?)"):
            info = json.loads(self._admin.info())
        found = {target_of(arn): arn for arn in info.get("sqsARN") or []}
        return {name: found[name] for name in TARGETS if name in found}

    def _notify(self, bucket: str, arns: Mapping[str, str]) -> None:
        with translated(f"read the notifications of {bucket}"):
            before = self._client.get_bucket_notification(bucket)
        ours = [q for q in before.queue_config_list if target_of(q.queue) in TARGETS]
        foreign = [q for q in before.queue_config_list if q not in ours]
        if {plain(q) for q in ours} == {(arn, EVENTS, None, None) for arn in arns.values()}:
            self._say(f"notifications of {bucket}: nothing to do")
            return
        wanted = NotificationConfig(
            cloud_func_config_list=before.cloud_func_config_list,
            topic_config_list=before.topic_config_list,
            queue_config_list=foreign
            + [
                QueueConfig(events=list(EVENTS), config_id=f"posedrop-{name}", queue=arn)
                for name, arn in arns.items()
            ],
        )
        with translated(f"set the notifications of {bucket}"):
            self._client.set_bucket_notification(bucket, wanted)
        kept = f"; {len(foreign)} of others kept" if foreign else ""
        replaced = f", in place of {len(ours)} entries for the same targets" if ours else ""
        self._say(f"notifications of {bucket}: set for fast and sure{replaced}{kept}")

    # -- buckets ---------------------------------------------------------------------------------

    def _bucket(self, bucket: str) -> None:
        with translated(f"create the bucket {bucket}"):
            if self._client.bucket_exists(bucket):
                self._say(f"bucket {bucket}: nothing to do")
            else:
                self._client.make_bucket(bucket, location=self._settings.s3_region)
                self._say(f"bucket {bucket}: created")

    def _take_expiry_away(self, bucket: str) -> None:
        """Take away the rule by which an older posedrop had the store itself expire a bucket.

        It knew no film from a posedrop.json, and no pin. Rules of others stay.
        """
        with translated(f"read the lifecycle of {bucket}"):
            before = self._client.get_bucket_lifecycle(bucket)
        rules = list(before.rules) if before else []
        foreign = [rule for rule in rules if rule.rule_id != _RETENTION_RULE]
        if len(foreign) == len(rules):
            self._say(f"expiry of {bucket}: nothing to do")
            return
        with translated(f"set the lifecycle of {bucket}"):
            if foreign:
                self._client.set_bucket_lifecycle(bucket, LifecycleConfig(foreign))
            else:
                self._client.delete_bucket_lifecycle(bucket)
        kept = f"; {len(foreign)} of others kept" if foreign else ""
        self._say(f"expiry of {bucket}: {_RETENTION_RULE} taken away, the handlers see to it{kept}")

    # -- users -----------------------------------------------------------------------------------

    def _users(self) -> list[User]:
        keys = self._keys
        users = [
            User("presigner", "PRESIGN", keys.presign_access_key, _text(keys.presign_secret_key)),
            User("handlers", "HANDLERS", keys.handlers_access_key, _text(keys.handlers_secret_key)),
            User("worker", "WORKER", keys.worker_access_key, _text(keys.worker_secret_key)),
        ]
        names = {user.access_key for user in users} | {keys.root_access_key}
        if len(names) != len(users) + 1:
            raise ConfigurationError(
                "presigner, handlers, worker and root need four different access keys: one that is "
                "shared would have the rights of both"
            )
        for user in users:
            if user.secret_key is not None and len(user.secret_key) < _MIN_SECRET:
                raise ConfigurationError(
                    f"POSEDROP_{user.variable}_SECRET_KEY is shorter than {_MIN_SECRET} characters"
                )
        return users

    def _policy(self, role: str) -> dict[str, Any]:
        settings = self._settings
        names = {
            "videos": settings.videos_bucket,
            "results": settings.results_bucket,
            "models": settings.models_bucket,
        }
        return load_policy(self._policies / f"{role}.json", names)

    def _with_secret(self, user: User, *, rotate: bool) -> User:
        if user.secret_key is not None:
            return user
        if not rotate and self._user_info(user.access_key) is not None:
            return user
        return replace(user, secret_key=secrets.token_urlsafe(30), made_here=True)

    def _user(self, user: User, policy: dict[str, Any]) -> None:
        known = self._user_info(user.access_key)
        # The policy is there before its user, who may do nothing until it is given.
        changed = self._set_policy(user.access_key, policy)
        if known is None:
            changed += self._put_user(user, "made")
        elif user.made_here:
            changed += self._put_user(user, "given a new secret")
        elif user.secret_key is not None and not self._fits(user.access_key, user.secret_key):
            changed += self._put_user(user, "given the secret that is set")
        changed += self._attach(user.access_key, known)
        what = ", ".join(changed) or "nothing to do"
        self._say(f"user {user.access_key} ({user.role}): {what}")

    def _set_policy(self, name: str, policy: dict[str, Any]) -> list[str]:
        """Write the policy, called like its user, so that two posedrops can share one MinIO."""
        before = self._asked(self._admin.policy_info, name)
        if before is not None and same_policy(before, policy):
            return []
        with translated(f"write the policy {name}"):
            self._admin.policy_add(policy_name=name, policy=policy)
        return ["policy written"]

    def _attach(self, name: str, known: dict[str, Any] | None) -> list[str]:
        done = []
        if known is None or known.get("policyName") != name:
            with translated(f"give {name} its policy"):
                # Set, not attached: whatever else it was allowed before is gone.
                self._admin.policy_set(policy_name=name, user=name)
            done.append("policy given")
        if known is not None and known.get("status") != "enabled":
            with translated(f"enable the user {name}"):
                self._admin.user_enable(access_key=name)
            done.append("enabled")
        return done

    def _put_user(self, user: User, done: str) -> list[str]:
        with translated(f"make the user {user.access_key}"):
            self._admin.user_add(access_key=user.access_key, secret_key=user.secret_key or "")
        return [done]

    def _user_info(self, name: str) -> dict[str, Any] | None:
        return self._asked(self._admin.user_info, name)

    def _asked(self, ask: Callable[[str], str], name: str) -> dict[str, Any] | None:
        with translated(f"look at {name}"):
            try:
                found: dict[str, Any] = json.loads(ask(name))
            except MinioAdminException as error:
                if "XMinioAdminNoSuch" in str(error):
                    return None
                raise
        return found

    def _fits(self, access_key: str, secret: str) -> bool:
        """Tell whether a user has this secret; what it may do does not matter here."""
        user = connect(self._settings, access_key, secret)
        with translated(f"try the key {access_key}"):
            try:
                next(iter(user.list_objects(self._settings.models_bucket)), None)
            except S3Error as error:
                if error.code == "AccessDenied":
                    return True
                if error.code in {"SignatureDoesNotMatch", "InvalidAccessKeyId"}:
                    return False
                raise
        return True


def run(
    settings: Settings,
    say: Say,
    *,
    policies: Path = POLICIES,
    write_env: Path | None = None,
    rotate: bool = False,
) -> None:
    """Bootstrap, and tell the keys: once on the terminal, or to a file that only its owner reads.

    Raises:
        ConfigurationError: something is missing; the message says what to set.
        StorageError: the server did not do what was asked.
    """
    # New secrets are wanted, so the old ones of the file don't count as given.
    keys = load_keys(None if rotate else write_env)

    def keep(users: list[User]) -> None:
        if write_env is not None:
            _write_variables(write_env, users, say)
        else:
            _show_variables(users, say)

    Bootstrap(settings, keys, say, policies=policies).run(keep, rotate=rotate)
    if rotate:
        # Measured: they go on even when the user is removed and made again.
        say(
            "MinIO keeps sessions (STS) that somebody made with an old secret for up to 7 days; "
            "after a leak, choose new access keys and remove the old users"
        )


def _show_variables(users: list[User], say: Say) -> None:
    lines = [
        f"{name}={value}"
        for user in users
        if user.made_here
        for name, value in user.variables.items()
    ]
    if lines:
        say("keep these keys; their secrets are not shown again:")
        for line in lines:
            say(line)


def _write_variables(path: Path, users: list[User], say: Say) -> None:
    lacking = [user.role for user in users if user.secret_key is None]
    if lacking:
        raise ConfigurationError(
            f"{path} was not written: the secrets of {', '.join(lacking)} were made before, and "
            "MinIO does not tell them. Set POSEDROP_..._SECRET_KEY, or make new ones with --rotate"
        )
    values = {name: value for user in users for name, value in user.variables.items()}
    lines = [f"{name}={value}\n" for name, value in values.items()]
    try:
        there = os.fsdecode(path.read_bytes()) if path.is_file() else None
        # It may be the file of a person's settings.
        own = [f"{line}\n" for line in (there or "").splitlines() if _name(line) not in values]
        content = "".join(lines + own)
        if there == content:
            path.chmod(0o600)
            say(f"{path}: nothing to do")
            return
        write_private(path, content)
    except OSError as error:
        raise ConfigurationError(f"can't write the keys to {path}: {error}") from error
    say(f"{path}: written")


def _name(line: str) -> str:
    """Return which variable a line of an env file sets, as it is read: in any case."""
    return line.strip().removeprefix("export ").partition("=")[0].strip().upper()


def _text(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None
