"""Folders of films sent to the bucket: once (``upload DIR --to``), or as they come (``watch``)."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from posedrop.api.uploads import Checked
from posedrop.buckets import layout, targets
from posedrop.cli import display
from posedrop.cli.options import Options
from posedrop.client import Client, trees, watch
from posedrop.client.client import PATIENCE
from posedrop.client.trees import LocalFile
from posedrop.errors import BadRequestError, PosedropError
from posedrop.terminal import say


def collect(paths: Sequence[Path]) -> list[LocalFile]:
    """Return what goes up of files and folders that a person named, rules first; say what does not.

    Raises:
        click.UsageError: two of them would have one name.
    """
    found: list[LocalFile] = []
    others: list[str] = []
    for path in paths:
        if path.is_dir():
            found += trees.walk(path, others)
        else:
            found.append(LocalFile(path, path.name, path.stat().st_size))
    if others:
        endings = sorted({Path(name).suffix or Path(name).name for name in others})
        say(f"passed over, as no films by their names: {len(others)} ({_some(endings)})", err=True)
    names = Counter(file.name for file in found)
    twice = [name for name, number in names.items() if number > 1]
    if twice:
        raise click.UsageError(f"two files would be {twice[0]} there: upload one of them elsewhere")
    return trees.rules_first(found)


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:5]) + (" ..." if len(words) > 5 else "")


def upload_into(
    client: Client,
    paths: Sequence[Path],
    to: str,
    *,
    analysis: str | None,
    args: Mapping[str, Any],
    dry_run: bool,
    as_json: bool,
) -> tuple[list[tuple[Path, str]], bool]:
    """Send files and folders into a folder of the bucket.

    Returns each path that went up with its file_id, and whether one was refused or did not.
    """
    files = collect(paths)
    asked = [file.to_check() for file in files]
    answers = client.check_uploads(to, asked, analysis, patience=PATIENCE)
    checked = [_or_refused(to, file, each) for file, each in zip(files, answers, strict=True)]
    if dry_run:
        _show(checked, as_json)
        sys.exit(1 if any(each.state == "refused" for each in checked) else 0)
    going = [(file, each) for file, each in zip(files, checked, strict=True) if _goes(each)]
    sent: list[tuple[Path, str]] = []
    with told_at_the_end() as problems:
        problems += [f"{each.path}: {each.why}" for each in checked if each.state == "refused"]
        total = sum(file.size for file, _ in going)
        with display.progress_bar(f"{len(going)} files", total, as_json) as on_bytes:
            lacking: set[str] = set()  # rules that did not go up
            for file, _ in going:
                if not analysis and (rule := _lacks(file, lacking)):
                    problems.append(f"{file.path}: {rule} did not go up: mend that first")
                    continue
                runs = None if layout.is_folder_rule(file.name) else analysis
                try:
                    ticket = client.upload_into(
                        file.path,
                        to,
                        file.name,
                        analysis=runs,
                        args=args if runs else None,
                        on_bytes=on_bytes,
                    )
                except (PosedropError, OSError) as error:
                    problems.append(problem_of(client, file.path, error))
                    if layout.is_folder_rule(file.name):
                        lacking.add(file.name)
                    continue
                if not layout.is_folder_rule(file.name):
                    sent.append((file.path, ticket.file_id))
                if not as_json:
                    was = " was there" if ticket.state == "exists" else ""
                    say(f"{file.path}:{was} {ticket.key}")
    if not files:
        say("there is no film and no posedrop.json", err=True)
    return sent, bool(problems)


def _lacks(file: trees.LocalFile, lacking: set[str]) -> str | None:
    """Return which rule that did not go up is for a film: the next one further up is not."""
    if layout.is_folder_rule(file.name):
        return None
    folders = (rule.rpartition("/")[0] for rule in lacking)
    above = [folder for folder in folders if not folder or file.name.startswith(f"{folder}/")]
    deepest = max(above, key=len, default=None)
    return None if deepest is None else f"{deepest}/posedrop.json".lstrip("/")


@contextmanager
def told_at_the_end() -> Iterator[list[str]]:
    """Have what is put into a list told to the person, though all ends with an error."""
    problems: list[str] = []
    try:
        yield problems
    finally:
        for problem in problems:
            say(problem, err=True)


def problem_of(client: Client, path: Path, error: PosedropError | OSError) -> str:
    """Return why one film did not go up, in words.

    Raises:
        PosedropError: ``error``, where no other film would go up either.
    """
    if isinstance(error, OSError):
        return f"{path} can't be read: {error.strerror or error}"
    away = error.code == "storage" and not client.has_store()
    if away or error.code in {"unreachable", "unauthorized"}:
        raise error  # what was sent stays: the same command goes on
    return f"{path}: {error.message}"


def _or_refused(to: str, file: LocalFile, checked: Checked) -> Checked:
    """Return what was answered; but of a name that is no text the server was told another one."""
    try:
        targets.key_in(targets.check_folder(to), file.name)
    except BadRequestError as error:
        return Checked(path=checked.path, state="refused", why=error.message)
    return checked


def _goes(checked: Checked) -> bool:
    # One that is there is compared by what the store knows of its content.
    return checked.state in {"new", "exists"}


def _show(checked: Sequence[Checked], as_json: bool) -> None:
    """Show what would become of files."""
    if as_json:
        display.print_json([display.plain(each) for each in checked])
        return
    display.table(
        [
            [
                each.state,
                each.runs or ("" if each.state != "new" else "-"),
                each.key or each.path,
                each.why or (f"by {each.rule}" if each.rule else ""),
            ]
            for each in checked
        ]
    )
    states = Counter(each.state for each in checked)
    runs = sum(each.runs is not None and each.state == "new" for each in checked)
    counts = ", ".join(f"{number} {state}" for state, number in states.items()) or "nothing"
    say(f"{counts}; an analysis runs on {runs}")


@click.command("watch")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", required=True, help="A folder of the bucket, such as cohort3.")
@click.option(
    "--settle",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0.0),
    help="Seconds for which a film has to stay as it is before it goes up.",
)
@click.option(
    "--every",
    default=5.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="Seconds between two looks at the folder.",
)
@click.pass_obj
def watch_(options: Options, folder: Path, to: str, settle: float, every: float) -> None:
    """Send films as they come into a folder: each once, when its recorder has closed it.

    Goes on until it is ended; an upload that was interrupted goes on where it was, and a network
    that is away is waited for. No film is changed or deleted. docs/deploy.md says how to have it
    started with the computer.

    \b
    posedrop watch recordings --to cohort3
    """
    root = folder.resolve()
    with options.client() as client:
        place = watch.memory_path(root, client.url, to, watch.state_folder())
        memory = watch.Memory(place, say)
        watcher = watch.Watcher(client, root, to, settle=settle, memory=memory, say=say)
        say(f"{root} is watched; its films go to {to}/")
        watch.run(watcher, every, say)
