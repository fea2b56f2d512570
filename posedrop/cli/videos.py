"""Videos and what runs on them: upload, analyse, ls, show, download, export, methods, rm..."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from posedrop.buckets import layout
from posedrop.buckets.records.derived import EXPORTS
from posedrop.cli import batches, display, folders
from posedrop.cli.options import Options, analysis_options, json_option
from posedrop.client import Client, File, Run, RunRow, flat, methods
from posedrop.errors import PosedropError
from posedrop.index.listing import Order
from posedrop.terminal import say

T = TypeVar("T")


@click.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True),
)
@click.option("--to", help="A folder of the bucket, such as cohort3/day1. Folders need one.")
@click.option("--dry-run", is_flag=True, help="With --to: say what would go up, and what runs.")
@analysis_options(required=False)
@click.option("--wait", is_flag=True, help="Wait until the runs are over.")
@json_option
@click.pass_obj
def upload(
    options: Options,
    files: tuple[Path, ...],
    to: str | None,
    dry_run: bool,
    analysis: str | None,
    args: dict[str, Any],
    wait: bool,
    as_json: bool,
) -> None:
    """Upload videos, or folders of them, and have them analysed.

    A video's hash goes along: the store takes no other content. Large ones go up in parts, and a
    part that fails goes up again.

    With --to they keep their names there, and folders their tree: of each folder the films go up,
    after each posedrop.json. What is there already stays, and nothing is replaced. Say the same
    again after an interruption: it goes on where it was.

    Ends with 0 if all went up; with --wait, if each video has results (those of a partial run
    count) or nothing was asked for it. Ends with 1 if one was refused, waits for a rule that is
    wrong, or its run failed or was cancelled.

    \b
    posedrop upload film.mp4
    posedrop upload *.mp4 --analysis deeplabcut_2d --arg model=mouse
    posedrop upload film.mp4 --analysis dummy --arg seconds=5 --wait
    posedrop upload ~/recordings/day1 --to cohort3/day1
    """
    if to is None and (dry_run or any(path.is_dir() for path in files)):
        raise click.UsageError("say into which folder of the bucket: --to cohort3/day1")
    with options.client() as client:
        if to is None:
            sent, failed = _upload_each(client, files, analysis, args, as_json)
        else:
            sent, failed = folders.upload_into(
                client, files, to, analysis=analysis, args=args, dry_run=dry_run, as_json=as_json
            )
        if not wait:
            if as_json:
                display.print_json([{"path": str(p), "file_id": file_id} for p, file_id in sent])
            sys.exit(1 if failed else 0)
        outcomes = []
        for path, file_id in sent:
            file = client.wait_for_file(file_id)
            run = _run_of(client, file, analysis, args, path.name)
            lacks = _is_open(file) if run is None else not run.has_results
            failed |= lacks or file.state == "refused"
            outcomes.append(
                {"path": str(path), "file": display.plain(file), "run": run and display.plain(run)}
            )
            if not as_json:
                _show_outcome(path, file, run)
    if as_json:
        display.print_json(outcomes)
    sys.exit(1 if failed else 0)


def _upload_each(
    client: Client,
    paths: Iterable[Path],
    analysis: str | None,
    args: Mapping[str, Any],
    quiet: bool,
) -> tuple[list[tuple[Path, str]], bool]:
    """Return each path that went up with its file_id, and whether one did not."""
    sent: list[tuple[Path, str]] = []
    with folders.told_at_the_end() as problems:
        for path in paths:
            try:
                sent.append((path, _upload(client, path, analysis, args, quiet)))
            except (PosedropError, OSError) as error:
                problems.append(folders.problem_of(client, path, error))
    return sent, bool(problems)


def _upload(
    client: Client, path: Path, analysis: str | None, args: Mapping[str, Any], quiet: bool
) -> str:
    with display.progress_bar(path.name, path.stat().st_size, quiet) as on_bytes:
        ticket = client.upload(path, analysis=analysis, args=args, on_bytes=on_bytes)
    if not quiet:
        say(f"{path}: file {ticket.file_id}")
    return ticket.file_id


def _run_of(
    client: Client, file: File, analysis: str | None, args: Mapping[str, Any], label: str
) -> Run | None:
    if file.state == "refused":
        return None
    if analysis is not None:
        # The same request has the same name, so this tells the id. It makes anew what had failed
        # before the upload, not what failed of it meanwhile.
        analysis_id = client.analyse(file.file_id, analysis, args, retry=False).analysis_id
    elif file.analyses:
        analysis_id = file.analyses[0].analysis_id
    else:
        return None
    return display.wait(client, analysis_id, label)


def _is_open(file: File) -> bool:
    """Tell whether a video without a run may get one yet."""
    return file.waiting is not None or (file.state == "ready" and file.planned is False)


def _show_outcome(path: Path, file: File, run: Run | None) -> None:
    if file.refusal is not None:
        say(f"{path}: refused, {file.refusal.reason}: {file.refusal.message}")
    elif file.waiting is not None and run is None:
        say(f"{path}: {display.describe_rule(file.waiting)}")
    elif run is None and _is_open(file):
        say(f"{path}: ready; what is to be run is not known yet: `posedrop show {file.file_id}`")
    elif run is None:
        say(f"{path}: ready; no analysis was asked for")
    else:
        display.show_run(run)


@click.command()
@click.argument("file", required=False)
@analysis_options(required=True)
@click.option("--prefix", help="All videos whose keys begin so, such as day1/; '' for all.")
@click.option("--force", is_flag=True, help="Run it anew, network and all, though results exist.")
@click.option("--notify", "aliases", multiple=True, help="Alias of the server told at the end.")
@click.option("--wait", is_flag=True, help="Wait until the run is over.")
@click.option("--dry-run", is_flag=True, help="Start nothing, but say what it would cost.")
@json_option
@click.pass_obj
def analyse(
    options: Options,
    file: str | None,
    analysis: str,
    args: dict[str, Any],
    prefix: str | None,
    force: bool,
    aliases: tuple[str, ...],
    wait: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Ask for an analysis of a video, named by its file id or its key, or of all below a prefix.

    If the same run exists, that is the answer. If it failed or was cancelled, it is made anew.
    Where a run of the same content has predictions.npz, by the same model, crop, frames and
    precision, the network is not needed: another filter, tracker, pcutoff or style takes seconds.

    Ends with 0 if it was taken; with --wait, if there are results (those of a partial run count).
    Ends with 1 if it was refused, or the run failed or was cancelled.

    \b
    posedrop analyse day1/film.mp4 --analysis deeplabcut_2d --arg model=mouse
    posedrop analyse mfzgs3tfebzw63lf --wait --analysis dummy --arg seconds=5
    posedrop analyse day1/film.mp4 --dry-run --analysis deeplabcut_2d --arg model=mouse
    posedrop analyse day1/film.mp4 --analysis superanimal --arg model=superanimal_topviewmouse
    posedrop analyse --prefix day1/ --analysis deeplabcut_2d --arg model=mouse --dry-run
    """
    if (prefix is None) == (file is None):
        raise click.UsageError("name a video, or say --prefix")
    notify = list(aliases) or None
    with options.client() as client:
        if file is None:
            many = client.analyse_many(
                analysis, args, prefix=prefix, force=force, dry_run=dry_run, notify=notify
            )
            batches.show_begun(client, many, wait=wait, as_json=as_json)
            return
        file_id = client.file_id_of(file)
        try:
            started = client.analyse(
                file_id, analysis, args, force=force, dry_run=dry_run, notify=notify
            )
        except PosedropError as error:
            if error.code != "not_found":
                raise
            raise PosedropError(f"there is no video {file!r}; `posedrop ls` lists them") from error
        if dry_run or not wait:
            if as_json:
                display.print_json(display.plain(started))
            else:
                words = [started.analysis_id, started.status, display.describe_cost(started.cost)]
                say(" ".join(word for word in words if word))
            return
        run = display.wait(client, started.analysis_id, file)
    if as_json:
        display.print_json(display.plain(run))
    else:
        display.show_run(run)
    sys.exit(0 if run.has_results else 1)


@click.command("ls")
@click.argument("query", required=False)
@click.option("--files", "kind", flag_value="files", default="files", help="Videos (default).")
@click.option("--analyses", "kind", flag_value="analyses", help="Runs.")
@click.option("--state", help="Only those: ready, refused, 'film gone'...; runs: failed...")
@click.option(
    "--order",
    type=click.Choice(get_args(Order)),
    default="newest",
    show_default=True,
    help="The newest first, or by name; of runs also those with the worst poses first.",
)
@click.option("--limit", default=100, show_default=True, help="At most so many.")
@json_option
@click.pass_obj
def list_(
    options: Options,
    query: str | None,
    kind: str,
    state: str | None,
    order: Order,
    limit: int,
    as_json: bool,
) -> None:
    """List videos or runs, the newest first; QUERY is any part of a name, or several.

    A part has three letters or more, or one character of Chinese, Japanese or Korean; one or two
    letters find words that begin so. What is wrong with a posedrop.json stands below the videos.

    \b
    posedrop ls
    posedrop ls day1 --state refused
    posedrop ls --analyses --state running
    posedrop ls --analyses --order quality
    """
    if kind == "files" and order == "quality":
        raise click.UsageError("videos have no quality, their runs have: add --analyses")
    with options.client() as client:
        if kind == "files":
            files = _first(limit, client.files(query, state=state, order=order))
            rows = [
                [
                    file.file_id,
                    "waits" if file.waiting is not None else file.state,
                    display.describe_size(file.size),
                    display.describe_time(file.created_at),
                    file.key,
                ]
                for file in files
            ]
            items = [display.plain(file) for file in files]
        else:
            runs: list[RunRow] = _first(limit, client.runs(query, state=state, order=order))
            rows = [
                [
                    run.analysis_id,
                    run.status,
                    display.describe_quality(run.quality),
                    run.analysis,
                    display.describe_time(run.created_at),
                    run.key,
                ]
                for run in runs
            ]
            items = [display.plain(run) for run in runs]
        wrong = client.wrong_rules() if kind == "files" and not as_json else []
    if as_json:
        display.print_json(items)
    else:
        display.table(rows)
        if not rows and (query or state):
            say("nothing matches", err=True)
        elif not rows and limit > 0:
            todo = "upload FILE" if kind == "files" else "analyse VIDEO --analysis NAME"
            say(f"there is nothing yet; begin with `posedrop {todo}`", err=True)
        for rule in wrong:
            say(f"{rule.rule} is wrong, the videos below it wait: {rule.message}")


@click.command()
@click.argument("id_", metavar="ID")
@json_option
@click.pass_obj
def show(options: Options, id_: str, as_json: bool) -> None:
    """Show a video, or how far a run is and what it made.

    \b
    posedrop show mfzgs3tfebzw63lf
    posedrop show day1/film.mp4
    """
    with options.client() as client:
        found = _find(client, id_)
    if as_json:
        display.print_json(display.plain(found))
    elif isinstance(found, Run):
        display.show_run(found)
    else:
        display.show_file(found)


@click.command()
@click.argument("id_", metavar="ANALYSIS_ID|FOLDER")
@click.option(
    "--flat",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="The newest results of each video below FOLDER, all in this directory.",
)
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the files; default: one named like the id.",
)
@json_option
@click.pass_obj
def download(
    options: Options, id_: str, directory: Path | None, folder: Path | None, as_json: bool
) -> None:
    """Fetch all files of a run; files that are there and whole are not fetched again.

    A run that failed has files too: what was made before it failed.

    With --flat: the tables, metadata and labelled video of the newest run of each video below a
    folder, in one directory and by the names that DeepLabCut gives, for its own tools. Nothing is
    overwritten. Ends with 1 if files would have been: they are named.

    \b
    posedrop download k5x2wq7mfzgs3tfe
    posedrop download k5x2wq7mfzgs3tfe --to results/day1
    posedrop download day1/ --flat results/day1
    """
    if directory is not None:
        if folder is not None:
            raise click.UsageError("--flat and --to name two directories: say one of them")
        _download_flat(options, id_, directory, as_json)
        return
    analysis_id = id_
    with options.client() as client:
        run = run_named(client, analysis_id)
        if not run.over:
            raise PosedropError(f"{analysis_id} is {run.status}; it has no files yet")
        total = sum(file.size for file in run.files)
        with display.progress_bar(analysis_id, total, as_json) as on_bytes:
            paths = client.download(run, folder or Path(analysis_id), on_bytes=on_bytes)
    if as_json:
        display.print_json([str(path) for path in paths])
    else:
        for path in paths:
            say(str(path))


def _download_flat(options: Options, folder: str, directory: Path, as_json: bool) -> None:
    with options.client() as client:
        found = flat.collect(client, folder, directory)
        total = sum(each.file.size for each in found.files)
        with display.progress_bar(folder, total, as_json) as on_bytes:
            paths = flat.fetch(client, found, directory, on_bytes)
    if as_json:
        display.print_json(
            {
                "files": [str(path) for path in paths],
                "clashes": found.clashes,
                "without": found.without,
            }
        )
    else:
        for path in paths:
            say(str(path))
        for key in found.without:
            say(f"{key} has no poses", err=True)
        for words in found.clashes:
            say(words, err=True)
    sys.exit(1 if found.clashes else 0)


@click.command()
@click.argument("analysis_id")
@click.argument("format_", metavar="FORMAT", type=click.Choice(list(EXPORTS)), required=False)
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    default=Path(),
    help="The file, if it ends as the format's files do; else a folder; default: this one.",
)
@click.option("--again", is_flag=True, help="Have it tried again, if it could not be made.")
@click.pass_obj
def export(options: Options, analysis_id: str, format_: str | None, to: Path, again: bool) -> None:
    """Download a run's poses in another format, which is made when it is first asked for.

    nwb: Neurodata Without Borders (ndx-pose). slp: SLEAP. nc: movement's NetCDF. parquet: a row for
    each frame, animal and bodypart. coco: COCO keypoints.

    \b
    posedrop export k5x2wq7mfzgs3tfe nwb
    posedrop export k5x2wq7mfzgs3tfe slp --to results/day1
    posedrop export k5x2wq7mfzgs3tfe --to day1.nwb
    """
    formats = {Path(name).suffix: format_ for format_, name in EXPORTS.items()}
    format_ = format_ or formats.get(to.suffix.lower())
    if format_ is None:
        known = ", ".join(EXPORTS)
        raise click.UsageError(f"say in which format ({known}), or name a file of one by --to")
    with options.client() as client:
        run = run_named(client, analysis_id)
        if not run.over:
            raise PosedropError(f"{analysis_id} is {run.status}; it has no poses yet")
        say(str(client.export(run.analysis_id, EXPORTS[format_], to, again=again)))


@click.command("methods")
@click.argument("analysis_id")
@click.pass_obj
def methods_(options: Options, analysis_id: str) -> None:
    """Print a paragraph for a paper's methods: versions, parameters, and what to cite.

    \b
    posedrop methods k5x2wq7mfzgs3tfe
    """
    with options.client() as client:
        run = run_named(client, analysis_id)
    if run.result is None:
        raise PosedropError(f"{analysis_id} is {run.status}; it has no result yet")
    for line in methods.paragraph(run.result).split("\n"):
        say(line)


@click.command()
@click.argument("analysis_id", required=False)
@batches.prefix_option
@batches.batch_option
@batches.dry_run_option
@batches.wait_option
@json_option
@click.pass_obj
def cancel(
    options: Options,
    analysis_id: str | None,
    prefix: str | None,
    batch_id: str | None,
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Stop a run that waits or goes on, all below a prefix, or a batch. Nothing is deleted.

    \b
    posedrop cancel k5x2wq7mfzgs3tfe
    posedrop cancel --prefix day1/ --dry-run
    posedrop cancel --batch mfzgs3tfebzw63lf
    """
    if sum(each is not None for each in (analysis_id, prefix, batch_id)) != 1:
        raise click.UsageError("name a run, or say one of --prefix and --batch")
    if analysis_id is not None:
        with options.client() as client:
            run = run_named(client, analysis_id)
            if run.over:
                over = f"{analysis_id} is over: {run.status}"
                raise PosedropError(f"{over}; `posedrop rm` deletes it")
            say(f"{analysis_id} {client.cancel(analysis_id)}")
        return
    with options.client() as client:
        answer = client.cancel_many(prefix=prefix, batch_id=batch_id, dry_run=dry_run)
        batches.show_begun(client, answer, wait=wait, as_json=as_json)


@click.command()
@click.argument("id_", metavar="FILE_ID|ANALYSIS_ID")
@click.pass_obj
def rm(options: Options, id_: str) -> None:
    """Delete a video with all its results, or the results of one run.

    \b
    posedrop rm mfzgs3tfebzw63lf
    """
    with options.client() as client:
        found = _find(client, id_)
        if isinstance(found, File):
            client.delete_file(found.file_id)
            say(f"{found.key} deleted, with its results")
        elif not found.over:
            raise PosedropError(f"{id_} is {found.status}; `posedrop cancel {id_}` stops it first")
        else:
            say(f"{id_} {client.delete_run(found.analysis_id)}")


@click.command()
@json_option
@click.pass_obj
def types(options: Options, as_json: bool) -> None:
    """List the analyses that can be asked for, with their arguments.

    \b
    posedrop types
    posedrop types --json
    """
    with options.client() as client:
        items = client.analysis_types()
    if as_json:
        display.print_json(items)
        return
    for item in items:
        say(f"{item['name']}: {item['summary']}")
        for name, schema in item["args"].get("properties", {}).items():
            default = f" (default {json.dumps(schema['default'])})" if "default" in schema else ""
            say(f"  {name}{default}  {schema.get('description', '')}".rstrip())


def _find(client: Client, text: str) -> File | Run:
    """Return the video or the run that a person named."""
    try:
        return client.file(client.file_id_of(text))
    except PosedropError as error:
        if error.code != "not_found":
            raise
    return run_named(client, text)


def run_named(client: Client, text: str) -> Run:
    """Return a run by its id; whoever named a video is told the ids of its runs."""
    if layout.is_id(text):
        try:
            return client.run(text)
        except PosedropError as error:
            if error.code != "not_found":
                raise
    file = _file(client, text)
    if file is None:
        raise PosedropError(f"there is no run {text!r}; `posedrop ls --analyses` lists them")
    if not file.analyses:
        raise PosedropError(f"{file.key} is a video without runs; `posedrop analyse` asks for one")
    runs = ", ".join(f"{run.analysis_id} ({run.analysis}, {run.status})" for run in file.analyses)
    raise PosedropError(f"{file.key} is a video; name one of its runs: {runs}")


def _file(client: Client, text: str) -> File | None:
    """Return the video of which this is the id, the key, or the name."""
    if not text:
        return None
    try:
        return client.file(client.file_id_of(text))
    except PosedropError as error:
        if error.code not in {"not_found", PosedropError.code}:
            raise
    found = [file for file in _first(1000, client.files(text)) if file.filename == text]
    return client.file(found[0].file_id) if found else None


def _first(limit: int, items: Iterable[T]) -> list[T]:
    return [item for item, _ in zip(items, range(limit), strict=False)]
