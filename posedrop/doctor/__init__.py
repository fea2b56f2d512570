"""`posedrop doctor`: look at everything that a stack needs, and say what to do about what lacks.

It changes nothing but one object of its own, which it removes. It may run beside the handlers, or
beside a worker: what only the other side has is left out or a warning, not a failure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from posedrop import __version__
from posedrop.doctor import api, broker, machine, store
from posedrop.doctor.finding import FAIL, OK, WARN, Finding
from posedrop.errors import PosedropError
from posedrop.settings import ENV_FILE, Settings, unknown_variables

__all__ = ["FAIL", "OK", "WARN", "Finding", "examine", "show"]

Check = Callable[[Settings], Iterator[Finding]]


def examine(load: Callable[[], Settings]) -> list[Finding]:
    """Run every check; one that breaks is a finding too, and never stops the others."""
    try:
        settings = load()
    except PosedropError as error:
        return [Finding("settings", FAIL, error.message, "correct the variable and ask again")]
    findings = [Finding("settings", OK, f"read{_sources(settings)}; posedrop {__version__}")]
    findings += [
        Finding("settings", WARN, words, "correct its name, or take it out")
        for words in unknown_variables(settings.data_dir)
    ]
    for check in (
        *(_STACK if _is_told(settings) else (_nowhere,)),
        machine.worker,
        machine.disk,
        machine.index,
    ):
        try:
            findings += check(settings)
        except PosedropError as error:
            findings.append(Finding(check.__name__, FAIL, error.message))
        except Exception as error:  # a check must not hide what the others found
            broke = f"the check itself broke: {error!r}"
            findings.append(Finding(check.__name__, FAIL, broke))
    return findings


_STACK: tuple[Check, ...] = (store.store, api.api, api.events, api.notices, broker.broker)


def _is_told(settings: Settings) -> bool:
    """Tell whether anything says where a stack is: its store, its broker or its buckets."""
    return any(
        name.startswith(("s3_", "sqs_", "presign_", "broker_")) or name.endswith("_bucket")
        for name in settings.model_fields_set
    )


def _sources(settings: Settings) -> str:
    """Return where settings were found, without their values."""
    file = settings.data_dir / ENV_FILE
    found = [str(file)] if file.is_file() else []
    known = {f"POSEDROP_{name.upper()}" for name in Settings.model_fields}
    found += sorted(known & {name.upper() for name in os.environ})
    return f" from {', '.join(found)}" if found else ""


def _nowhere(settings: Settings) -> Iterator[Finding]:
    """Say that there is no posedrop to look at, and how one is had."""
    yield Finding(
        "stack",
        FAIL,
        f"no posedrop was found: {settings.data_dir} has none, and no variable says where one is",
        "start one with `posedrop up`; or name the folder of one, `posedrop --data-dir DIR "
        "doctor`; or say where else it is: POSEDROP_S3_ENDPOINT (on AWS POSEDROP_S3_REGION), "
        "POSEDROP_URL, POSEDROP_BROKER_URL",
    )
    if "url" in settings.model_fields_set:
        yield from api.api(settings)


def show(findings: list[Finding], say: Callable[[str], None]) -> None:
    """Print the findings, one a line, and below each what to do."""
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        say(f"{finding.state:<4}  {finding.check:<{width}}  {finding.message}")
        if finding.todo:
            say(f"{'':<{width + 8}}-> {finding.todo}")
    failed = sum(finding.state == FAIL for finding in findings)
    warned = sum(finding.state == WARN for finding in findings)
    say(f"{len(findings)} checks, {failed} failed, {warned} with a warning")
