"""What a person sees: a video, a run and how far it is, tables, sizes; and JSON for a script."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click

from posedrop.api.runs import Cost
from posedrop.client import Client, File, Run, WrongRule
from posedrop.terminal import printable, rewrite, say, say_json


def wait(client: Client, analysis_id: str, label: str) -> Run:
    """Return a run once it is over; until then stderr shows its progress."""
    tty = sys.stderr.isatty()
    said = ""

    def on_progress(run: Run) -> None:
        nonlocal said
        line = f"{label}: {describe_progress(run)}"
        if tty:
            rewrite(line)
        elif run.status != said:
            say(line, err=True)
        said = run.status

    try:
        return client.wait(analysis_id, on_progress=on_progress)
    finally:
        if tty:
            say("", err=True)


def describe_progress(run: Run) -> str:
    """Return how far a run is, in one line."""
    progress = run.progress
    if progress is None:
        before = f", {run.position} before it" if run.position else ""
        return f"{run.status}{before}"
    text = f"{run.status}, {progress.stage}"
    if progress.total:
        text += f" {progress.done}/{progress.total} frames"
    elif progress.done:
        text += f" {progress.done} frames"
    if progress.frames_per_second:
        text += f", {progress.frames_per_second:.1f} frames/s"
    return text


def show_file(file: File) -> None:
    """Show a video."""
    say(f"{file.key}: {file.state}, {describe_size(file.size)}")
    if file.probe is not None:
        p = file.probe
        say(
            f"  {p['width']}x{p['height']} pixels, {p['frames']} frames, {p['fps']:.4g} frames/s, "
            f"{p['codec']}"
        )
    if file.sha256 is not None:
        say(f"  sha256 {file.sha256}")
    if file.duplicate_of is not None:
        say(f"  the same content as {file.duplicate_of}")
    if file.refusal is not None:
        say(f"  refused, {file.refusal.reason}: {file.refusal.message}")
    if file.waiting is not None:
        say(f"  {describe_rule(file.waiting)}")
    table([[run.analysis_id, run.status, run.analysis] for run in file.analyses], indent="  ")


def describe_rule(rule: WrongRule) -> str:
    """Return what is wrong with a rule, in one line."""
    return f"waits, {rule.rule} is wrong: {rule.message}"


def show_run(run: Run) -> None:
    """Show how far a run is and what it made."""
    say(f"{run.analysis_id} {run.analysis}: {describe_progress(run)}")
    if run.error is not None:
        say(f"  {run.error.code}: {run.error.message}")
        if run.error.log_tail:
            for line in run.error.log_tail.splitlines()[-10:]:
                say(f"    {line}")
    if run.retried_by is not None:
        say(f"  made anew: {run.retried_by}")
    quality = (run.result or {}).get("quality")
    if quality is not None:
        say(f"  quality {describe_quality(quality['score'])} of 100")
        for reason in quality["reasons"]:
            say(f"    {reason}")
    table([[file.name, describe_size(file.size)] for file in run.files], indent="  ")
    if run.files:
        say(f"  posedrop download {run.analysis_id}")


def describe_cost(cost: Cost | None) -> str:
    """Return in words what a run costs; nothing, where that is not known."""
    if cost is None:
        return ""
    by = "with the network" if cost.network else "without the network"
    return by if cost.seconds is None else f"{by}, about {cost.seconds:.0f} s of work"


def describe_quality(score: float | None) -> str:
    """Return the score of a run's poses, as short as can be."""
    return "-" if score is None else f"{score:.0f}"


@contextmanager
def progress_bar(label: str, length: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show bytes as they go; on a terminal only, and on stderr, so that output stays clean."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=length, label=printable(label)[:40], file=sys.stderr) as bar:
        yield bar.update


def table(rows: Iterable[list[str]], indent: str = "") -> None:
    """Show rows in columns."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        say((indent + "  ".join(cells)).rstrip())


def describe_time(moment: datetime) -> str:
    """Return a time to the second, as the server tells it: in UTC."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def describe_size(size: int | None) -> str:
    """Return a number of bytes for a person."""
    if size is None:
        return "-"
    amount = float(size)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if amount < 999.5:  # else three digits would show it as 1e+03
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} PB"


def plain(answer: Any) -> Any:
    """Return an answer of the API as JSON has it."""
    return answer.model_dump(mode="json")


def print_json(value: Any) -> None:
    """Show a value as JSON."""
    say_json(value)
