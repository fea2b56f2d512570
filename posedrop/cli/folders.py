"""Folders of films sent to the bucket: once (``upload DIR --to``), or as they come (``watch``)."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from posedrop.api.uploads import Checked
from posedrop.buckets import layout
from posedrop.cli import display
from posedrop.cli.options import Options
from posedrop.client import Client, trees, watch
from posedrop.client.client import PATIENCE
from posedrop.client.trees import LocalFile
from posedrop.errors import PosedropError
from posedrop.terminal import say


def collect(paths: Sequence[Path]) -> list[LocalFile]:
    """Return what goes up of files and folders that a person named, rules first.

    Raises:
        click.UsageError: two of them would have one name.
    """
    found: list[LocalFile] = []
    for path in paths:
        if path.is_dir():
            found += trees.walk(path)
        else:
            found.append(LocalFile(path, path.name, path.stat().st_size))
    names = Counter(file.name for file in found)
    twice = [name for name, number in names.items() if number > 1]
    if twice:
        raise click.UsageError(f"two files would be {twice[0]} there: upload one of them elsewhere")
    return trees.rules_first(found)


def upload_into(
    client: Client,
    paths: Sequence[Path],
    to: str,
    *,
    analysis: str | None,
    args: Mapping[str, Any],
    dry_run: bool,
    as_json: bool,
) -> list[tuple[Path, str]]:
    """Send files and folders into a folder of the bucket; return each path with its file_id.

    Ends the command with 1 after all others went up, if one was refused or did not.
    """
    files = collect(paths)
    checked = client.check_uploads(
        to, [file.to_check() for file in files], analysis, patience=PATIENCE
    )
    if dry_run:
        _show(checked, as_json)
        sys.exit(1 if any(each.state == "refused" for each in checked) else 0)
    going = [(file, each) for file, each in zip(files, checked, strict=True) if _goes(each)]
    problems = [f"{each.path}: {each.why}" for each in checked if each.state == "refused"]
    total = sum(file.size for file, _ in going)
    sent: list[tuple[Path, str]] = []
    was_away = False
    with display.progress_bar(f"{len(going)} files", total, as_json) as on_bytes:
        for file, _ in going:
            asked = None if layout.is_folder_rule(file.name) else analysis
            try:
                ticket = client.upload_into(
                    file.path,
                    to,
                    file.name,
                    analysis=asked,
                    args=args if asked else None,
                    on_bytes=on_bytes,
                )
            except PosedropError as error:
                if error.code == "unreachable" or (was_away and error.code == "storage"):
                    raise  # what was sent stays: the same command goes on
                # A store may take no film of this name; where it takes none at all, the next tells.
                was_away = error.code == "storage"
                problems.append(f"{file.path}: {error.message}")
                continue
            was_away = False
            if not layout.is_folder_rule(file.name):
                sent.append((file.path, ticket.file_id))
            if not as_json:
                was = " was there" if ticket.state == "exists" else ""
                say(f"{file.path}:{was} {ticket.key}")
    for problem in problems:
        say(problem, err=True)
    if not files:
        say("there is no film and no posedrop.json", err=True)
    if problems:
        sys.exit(1)
    return sent


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
        memory = watch.Memory(place)
        watcher = watch.Watcher(client, root, to, settle=settle, memory=memory, say=say)
        say(f"{root} is watched; its films go to {to}/")
        watch.run(watcher, every, say)
