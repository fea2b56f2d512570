"""`posedrop doctor`: look at everything that a stack needs, and say what to do about what lacks.

It changes nothing but one object of its own, which it removes. It may run beside the handlers, or
beside a worker: what only the other side has is left out or a warning, not a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from posedrop import __version__
from posedrop.doctor import api, broker, machine, store
from posedrop.doctor.finding import FAIL, OK, WARN, Finding
from posedrop.errors import PosedropError
from posedrop.settings import Settings

__all__ = ["FAIL", "OK", "WARN", "Finding", "examine", "show"]

Check = Callable[[Settings], Iterator[Finding]]


def examine(load: Callable[[], Settings]) -> list[Finding]:
    """Run every check; one that breaks is a finding too, and never stops the others."""
    try:
        settings = load()
    except PosedropError as error:
        return [Finding("settings", FAIL, error.message, "correct the variable and ask again")]
    findings = [Finding("settings", OK, f"read; posedrop {__version__}")]
    for check in (
        store.store,
        api.api,
        api.events,
        broker.broker,
        machine.worker,
        machine.disk,
        machine.index,
    ):
        try:
            findings += check(settings)
        except Exception as error:  # a check must not hide what the others found
            broke = f"the check itself broke: {error!r}"
            findings.append(Finding(check.__name__, FAIL, broke))
    return findings


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
