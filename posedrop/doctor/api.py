"""The API: it answers, and takes events with their token."""

from __future__ import annotations

from collections.abc import Iterator

import httpx

from posedrop import __version__
from posedrop.api.telling import NotifyChecked
from posedrop.doctor.finding import FAIL, HTTP_SECONDS, OK, WARN, Finding, ask, how_to_start
from posedrop.settings import Settings

#: How long the check of notices may take: it starts a process for each alias, and reads all rules.
_NOTICES_SECONDS = 120.0


def api(settings: Settings) -> Iterator[Finding]:
    """Check that the API answers, in the version that is installed here."""
    try:
        answer = ask("GET", f"{settings.url.rstrip('/')}/healthz")
        answer.raise_for_status()
        version = answer.json()["version"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        told = "url" in settings.model_fields_set
        yield Finding(
            "API",
            FAIL if told else WARN,
            f"{settings.url}/healthz: {error!r}",
            how_to_start(settings, "the handlers")
            if told
            else "if there is an API elsewhere, set POSEDROP_URL",
        )
        return
    if version != __version__:
        todo = "install the same version everywhere"
        yield Finding("API", WARN, f"runs posedrop {version}, this is {__version__}", todo)
    else:
        yield Finding("API", OK, f"answers at {settings.url}")
    yield from _ready(settings)


def _ready(settings: Settings) -> Iterator[Finding]:
    """Check that each part of the handlers does its work, by GET /readyz."""
    try:
        answer = ask("GET", f"{settings.url.rstrip('/')}/readyz")
        if answer.status_code not in {200, 503}:
            return  # an older one's
        parts: dict[str, str] = answer.json()["parts"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        yield Finding("API's parts", FAIL, f"/readyz: {error!r}", "look at the log of the handlers")
        return
    wrong = [f"{part} ({code})" for part, code in parts.items() if code != "ok"]
    if wrong:
        todo = "the log of the handlers says what is the matter; what waits for them is not lost"
        yield Finding("API's parts", FAIL, f"not at work: {', '.join(wrong)}", todo)
    else:
        yield Finding("API's parts", OK, f"at work: {', '.join(parts)}")


def notices(settings: Settings) -> Iterator[Finding]:
    """Check that whoever is to be told that runs are over can be, by GET /notify/check."""
    if settings.api_token is None:
        return
    token = settings.api_token.get_secret_value()
    try:
        answer = ask(
            "GET",
            f"{settings.url.rstrip('/')}/notify/check",
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(HTTP_SECONDS, read=_NOTICES_SECONDS),
        )
        if answer.status_code != 200:
            return  # an older one's, or another's token
        found = NotifyChecked.model_validate(answer.json())
    except httpx.ReadTimeout:
        words = f"whether all can be told was not found out within {_NOTICES_SECONDS:g} s"
        todo = "`posedrop notify test ALIAS` says whether one is reached"
        yield Finding("notices", WARN, words, todo)
        return
    except (httpx.HTTPError, ValueError):
        return  # the check of the API has said so
    for each in found.items:
        if each.rule is None:
            yield Finding("notices", FAIL, f"{each.alias}: {each.message}")
        else:
            words = f"{each.rule} names {each.alias!r}, of whom the server does not know"
            todo = "correct that posedrop.json, or add the alias to POSEDROP_NOTIFY_URLS"
            yield Finding("notices", WARN, words, todo)
    if found.aliases and not found.items:
        todo = "`posedrop notify test ALIAS` says whether one is reached"
        yield Finding("notices", OK, f"{found.aliases} aliases; {todo}")


def events(settings: Settings) -> Iterator[Finding]:
    """Check that the API takes a notification with the events token."""
    if settings.events_token is None:
        yield Finding(
            "events token",
            WARN,
            "there is none here",
            "handlers without POSEDROP_EVENTS_TOKEN refuse every notification; a worker needs none",
        )
        return
    try:
        answer = ask(
            "POST",
            f"{settings.url.rstrip('/')}/events",
            # A notification of nothing: taken, and forgotten.
            json={"Records": []},
            headers={"Authorization": f"Bearer {settings.events_token.get_secret_value()}"},
        )
    except httpx.HTTPError:
        return  # the check of the API has said so
    if answer.status_code == 204:
        yield Finding("events token", OK, "POST /events takes it")
    elif answer.status_code == 401:
        yield Finding(
            "events token",
            FAIL,
            "POST /events refuses it",
            "set one POSEDROP_EVENTS_TOKEN for the handlers, here and in MinIO's AUTH_TOKEN",
        )
    else:
        todo = "look at the log of the handlers"
        yield Finding("events token", FAIL, f"POST /events answers {answer.status_code}", todo)
