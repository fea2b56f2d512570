"""Keeping it running: bootstrap, doctor, settings, reconcile, reindex, expire and others."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import click

from posedrop.cli import display
from posedrop.cli.options import Options, json_option
from posedrop.client import Client, Expiry, File
from posedrop.errors import PosedropError
from posedrop.terminal import say


@click.command()
@click.option(
    "--policies",
    type=click.Path(path_type=Path, file_okay=False),
    help="Default: the package's own posedrop/minio/policy_files.",
)
@click.option(
    "--write-env",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the keys in this file (0600) instead of printing the new ones; read first if there, "
    "and its other lines are kept.",
)
@click.option("--rotate", is_flag=True, help="New secrets for the users whose secret is not set.")
@click.pass_obj
def bootstrap(
    options: Options, policies: Path | None, write_env: Path | None, rotate: bool
) -> None:
    """Make a MinIO ready: buckets, notifications, and three keys with least rights.

    It looks first and changes only what differs, so run it at every deployment. MinIO's root key
    is read from POSEDROP_ROOT_ACCESS_KEY and POSEDROP_ROOT_SECRET_KEY; posedrop never runs with it
    (only `posedrop models push` needs a key like it). The three keys are POSEDROP_PRESIGN_,
    POSEDROP_HANDLERS_ and POSEDROP_WORKER_ACCESS_KEY and _SECRET_KEY; secrets that are not set are
    made here. Handlers and workers each take theirs as POSEDROP_S3_ACCESS_KEY and _SECRET_KEY.
    In notifications, entries for the targets fast and sure are replaced; all others are kept. The
    rule of expiry posedrop-retention that an older posedrop made is taken away; all others stay.

    MinIO only. SeaweedFS is prepared by `posedrop up`; on AWS make buckets, SQS notifications and
    IAM users with the tools you have there, from the same posedrop/minio/policy_files.

    \b
    posedrop bootstrap --write-env posedrop-keys.env
    """
    from posedrop.minio import bootstrap as steps

    steps.run(
        options.settings,
        say,
        policies=policies or steps.POLICIES,
        write_env=write_env,
        rotate=rotate,
    )


@click.command()
@json_option
@click.pass_obj
def doctor(options: Options, as_json: bool) -> None:
    """Check store, keys, events, broker, API, codecs and disk; say what to do. 1 if any fails.

    \b
    posedrop doctor
    """
    from posedrop import doctor as checks

    findings = checks.examine(lambda: options.settings)
    if as_json:
        display.print_json([finding.as_json() for finding in findings])
    else:
        checks.show(findings, say)
    sys.exit(1 if any(finding.state == checks.FAIL for finding in findings) else 0)


@click.command("settings")
@click.pass_obj
def settings_(options: Options) -> None:
    """List all that can be set, and how it is set here; as a file of variables.

    Lines of it go into the data directory's posedrop.env (`posedrop up`), into infra/posedrop.env
    (compose), or into the environment. What begins with # is as it comes.

    \b
    posedrop settings
    """
    from posedrop import settings

    for line in settings.as_env(options.settings):
        say(line)


@click.command()
@json_option
@click.pass_obj
def reconcile(options: Options, as_json: bool) -> None:
    """Compare buckets, index and queue now, and repair what differs (it also runs by itself).

    \b
    posedrop reconcile
    """
    with options.client() as client:
        _show_counts(client.reconcile(), as_json)


@click.command()
@json_option
@click.pass_obj
def reindex(options: Options, as_json: bool) -> None:
    """Make the index anew from the buckets.

    \b
    posedrop reindex
    """
    with options.client() as client:
        _show_counts(client.reindex(), as_json)


@click.command()
@click.argument("prefix")
@click.option("--no-wait", is_flag=True, help="End at once, without what comes of each.")
@json_option
@click.pass_obj
def reingest(options: Options, prefix: str, no_wait: bool, as_json: bool) -> None:
    """Look anew at the refused videos whose keys begin with PREFIX ('' for all of them).

    A video that is fine now is analysed as its rules say. Videos that are not refused are left
    alone. What an older posedrop refused is looked at anew by itself, some videos a minute.

    \b
    posedrop reingest day1/
    posedrop reingest day1/film.mp4
    """
    with options.client() as client:
        keys = client.reingest(prefix)
        answer: list[Any] = [{"file_id": file_id, "key": key} for file_id, key in keys.items()]
        if not as_json:
            where = f"whose key begins with {prefix}" if prefix else "at all"
            say(
                f"looked at anew: {len(keys)}"
                if keys
                else f"there is no refused video {where}; `posedrop ls --state refused` lists them"
            )
        if not no_wait:
            answer = [display.plain(file) for file in _looked_at(client, keys, as_json)]
    if as_json:
        display.print_json(answer)


def _looked_at(client: Client, keys: Mapping[str, str], quiet: bool) -> Iterator[File]:
    """Yield the videos as each was looked at, and tell what came of it."""
    for number, (file_id, key) in enumerate(keys.items(), 1):
        try:
            file = client.wait_for_file(file_id)
        except PosedropError as error:
            if error.code != "not_found":
                raise
            say(f"{number}/{len(keys)} {key}: deleted meanwhile", err=True)
            continue
        if not quiet:
            said = f", {file.refusal.reason}: {file.refusal.message}" if file.refusal else ""
            say(f"{number}/{len(keys)} {key}: {file.state}{said}")
        yield file


@click.group("notify")
def notify_group() -> None:
    """Who is told that runs and batches are over: mail, chat, webhooks.

    Aliases are named in a posedrop.json (`"notify": ["lab"]`), by --notify or POSEDROP_NOTIFY. What
    they stand for is the server's secret: POSEDROP_NOTIFY_URLS.
    """


@notify_group.command("ls")
@json_option
@click.pass_obj
def notify_ls(options: Options, as_json: bool) -> None:
    """List the server's aliases.

    \b
    posedrop notify ls
    """
    with options.client() as client:
        found = client.notify_aliases()
    if as_json:
        display.print_json([display.plain(each) for each in found])
        return
    display.table(
        [each.alias, each.kind, f"{each.given_up} given up" if each.given_up else "ok"]
        for each in found
    )
    if not found:
        say("there are none; docs/deploy.md says how POSEDROP_NOTIFY_URLS is set", err=True)


@notify_group.command("test")
@click.argument("alias")
@click.pass_obj
def notify_test(options: Options, alias: str) -> None:
    """Send an alias a notice now, and say whether it was taken; 1 if not.

    \b
    posedrop notify test lab
    """
    with options.client() as client:
        answer = client.notify_test(alias)
    if not answer.taken:
        raise PosedropError(f"{alias} was not reached: {answer.error}")
    say(f"{alias} has taken it")


@notify_group.command("again")
@click.argument("alias")
@click.pass_obj
def notify_again(options: Options, alias: str) -> None:
    """Send once more the notices to an alias that were given up.

    \b
    posedrop notify again lab
    """
    with options.client() as client:
        say(f"{client.notify_again(alias)} notices are sent again")


@click.command("dead-letters")
@click.argument("ids", nargs=-1, type=click.IntRange(min=0), metavar="[ID]...")
@click.option("--replay", is_flag=True, help="Have them followed again: all, or those with an ID.")
@click.option("--limit", default=50, show_default=True, help="List at most so many.")
@json_option
@click.pass_obj
def dead_letters(
    options: Options, ids: tuple[int, ...], replay: bool, limit: int, as_json: bool
) -> None:
    """List the events that could not be read or followed, the newest first.

    Nothing is lost with them: what they told of, the reconciler finds in the buckets. --replay has
    them followed again, for instance once a newer posedrop is here that reads a record.

    \b
    posedrop dead-letters
    posedrop dead-letters 17 18 --replay
    """
    with options.client() as client:
        if replay:
            _show_counts(client.replay(ids or None).model_dump(), as_json)
            return
        found = client.dead_letters()
        wanted = [letter for letter in found if letter.id in ids] if ids else []
        shown = wanted if ids else list(islice(found, max(0, limit)))
    if as_json:
        display.print_json([display.plain(letter) for letter in shown])
        return
    for letter in shown:
        say(f"{letter.id}  {display.describe_time(letter.received_at)}  {letter.reason}")
        say(f"    {letter.body if ids else letter.body[:200]}")
    if not shown:
        say("there are no dead letters" if not ids else "nothing matches", err=True)


@click.command()
@click.option("--dry-run", is_flag=True, help="List what would go and why; remove nothing.")
@click.option("--yes", is_flag=True, help="Remove it without asking.")
@json_option
@click.pass_obj
def expire(options: Options, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove what is due by its age or for want of space, also where that is much at once.

    The server does so by itself, where POSEDROP_RETENTION_DAYS or POSEDROP_HIGH_WATER_BYTES is set,
    unless more than a share of all films is due (POSEDROP_EXPIRE_SHARE): then it waits for this
    command. `"keep": true` in a posedrop.json keeps the films below it, `"keep": ["a.mp4"]` one.

    \b
    posedrop expire --dry-run
    """
    with options.client() as client:
        found = client.expiry()
        if not as_json:
            _show_due(found)
        elif dry_run or found.due == 0:
            display.print_json(display.plain(found))
        if dry_run or found.due == 0:
            return
        if not yes:
            click.confirm(f"remove these {found.due:,}?", abort=True, err=True)
        _show_counts(client.expire(found.due).model_dump(), as_json)


def _show_due(found: Expiry) -> None:
    what = {"results": "results only", "space": "film, its results stay"}
    rows = [
        (due.key, display.describe_size(due.size), what.get(due.kind, "film and results"), due.why)
        for due in found.items
    ]
    display.table(map(list, rows))
    if found.due > len(found.items):
        say(f"... and {found.due - len(found.items):,} more")
    size = display.describe_size(found.size)
    say(f"due: {found.due:,} ({size}) of {found.films:,} films; kept: {found.kept:,}")
    if found.held:
        say("that is more at once than POSEDROP_EXPIRE_SHARE: it waits for your word")


def _show_counts(counts: Mapping[str, int], as_json: bool) -> None:
    if as_json:
        display.print_json(counts)
    else:
        display.table([[str(count), name.replace("_", " ")] for name, count in counts.items()])
