"""Many videos at once: retry, batches; and what analyse and cancel have in common with them."""

from __future__ import annotations

import sys
from itertools import islice

import click

from posedrop.cli import display
from posedrop.cli.options import Options, json_option
from posedrop.client import Batch, BatchStarted, Client, DryRun
from posedrop.terminal import rewrite, say

#: What a dry run says, by its counts.
_WOULD = {
    "run": "would run",
    "again": "would run again",
    "exists": "exist already",
    "not_ready": "would run as soon as they were looked at",
    "refused": "are refused",
    "unknown": "are not known",
    "stop": "would be stopped",
}
prefix_option = click.option("--prefix", help="Of the videos' keys, such as day1/; '' for all.")
batch_option = click.option("--batch", "batch_id", help="A batch, by its id.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say how many that is; do nothing.")
wait_option = click.option("--wait", is_flag=True, help="Wait until the batch is over.")


@click.command()
@prefix_option
@batch_option
@click.option("--cancelled", is_flag=True, help="What was cancelled, too.")
@dry_run_option
@wait_option
@json_option
@click.pass_obj
def retry(
    options: Options,
    prefix: str | None,
    batch_id: str | None,
    cancelled: bool,
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Make anew what failed, below a prefix or in a batch: each run once, as it was asked for.

    \b
    posedrop retry --prefix day1/
    posedrop retry --batch mfzgs3tfebzw63lf --cancelled --wait
    """
    if (prefix is None) == (batch_id is None):
        raise click.UsageError("say one of --prefix and --batch")
    with options.client() as client:
        answer = client.retry_many(
            prefix=prefix, batch_id=batch_id, cancelled=cancelled, dry_run=dry_run
        )
        show_begun(client, answer, wait=wait, as_json=as_json)


@click.command("batches")
@click.argument("batch_id", required=False)
@wait_option
@click.option("--limit", default=20, show_default=True, help="List at most so many.")
@json_option
@click.pass_obj
def batches_(options: Options, batch_id: str | None, wait: bool, limit: int, as_json: bool) -> None:
    """List batches, the newest first, or show one.

    Ends with 1 if a batch that was waited for has failed runs.

    \b
    posedrop batches
    posedrop batches mfzgs3tfebzw63lf --wait
    """
    with options.client() as client:
        if batch_id is not None:
            show(client, batch_id, wait=wait, as_json=as_json)
        if wait:
            raise click.UsageError("--wait needs a batch's id")
        found = list(islice(client.batches(), max(0, limit)))
    if as_json:
        display.print_json([display.plain(batch) for batch in found])
        return
    display.table(
        [
            batch.batch_id,
            display.describe_time(batch.created_at),
            batch.status,
            batch.kind,
            _of(batch),
            batch.line,
        ]
        for batch in found
    )
    if not found:
        say("there are no batches; `posedrop analyse --prefix` begins one", err=True)


def _of(batch: Batch) -> str:
    if batch.of_batch is not None:
        return f"batch {batch.of_batch}"
    return f"{batch.prefix}*" if batch.prefix is not None else "named films"


def show_begun(client: Client, answer: BatchStarted | DryRun, *, wait: bool, as_json: bool) -> None:
    """Show what a batch would do, or that it is begun; with ``wait`` its end, and then exit."""
    if isinstance(answer, DryRun):
        _show_dry_run(answer, as_json)
    elif wait:
        show(client, answer.batch_id, wait=True, as_json=as_json)
    elif as_json:
        display.print_json(display.plain(answer))
    else:
        goes_on = "goes on" if answer.existed else "begun"
        say(f"batch {answer.batch_id} {goes_on}; `posedrop batches {answer.batch_id}` says how far")


def _show_dry_run(found: DryRun, as_json: bool) -> None:
    if as_json:
        display.print_json(display.plain(found))
        return
    display.table(
        [film.outcome.replace("_", " "), film.key or film.file_id] for film in found.sample
    )
    if found.films > len(found.sample) > 0:
        say(f"... and {found.films - len(found.sample):,} more")
    for name, words in _WOULD.items():
        count = getattr(found, name)
        if count:
            say(f"{count:,} {words}")
    if found.runs:
        takes = f", about {found.seconds / 3600:.1f} hours" if found.seconds else ""
        say(f"that is {found.runs:,} runs of {found.frames:,} frames{takes}")
    if not found.films:
        say("that is no film")
    if found.more:
        say("and there are further films, which were not looked at")


def show(client: Client, batch_id: str, *, wait: bool, as_json: bool) -> None:
    """Show a batch, with ``wait`` once it is over; then exit, with 1 if films of it failed."""
    batch = client.batch(batch_id)  # a server that isn't there is told of at once
    if wait:
        batch = _waited_for(client, batch_id, as_json)
    if as_json:
        display.print_json(display.plain(batch))
    else:
        say(f"batch {batch.batch_id} ({batch.kind} {_of(batch)}), {batch.status}: {batch.line}")
        for why in batch.why:
            say(f"  {why.count:,} {why.code}: {why.message}")
            say(f"    such as {', '.join(why.keys)}")
    sys.exit(1 if wait and batch.counts.get("failed") else 0)


def _waited_for(client: Client, batch_id: str, quiet: bool) -> Batch:
    """Return a batch once it is over; until then stderr shows how far it is."""
    tty, said = sys.stderr.isatty() and not quiet, ""

    def on_progress(batch: Batch) -> None:
        nonlocal said
        line = f"{_bar(batch)}{batch.line}"
        if tty:
            rewrite(line)
        elif batch.status != said and not quiet:
            say(batch.line, err=True)
        said = batch.status

    try:
        return client.wait_for_batch(batch_id, on_progress=on_progress)
    finally:
        if tty:
            say("", err=True)


def _bar(batch: Batch, width: int = 20) -> str:
    still = sum(batch.counts.get(state, 0) for state in ("waiting", "queued", "running"))
    done = (batch.films - still) / batch.films if batch.films else 0.0
    full = int(done * width)
    return f"[{'#' * full}{'-' * (width - full)}] {done:4.0%} "
