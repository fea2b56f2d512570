"""Keeping it running: bootstrap, doctor, reconcile, reindex."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import click

from posedrop.cli import display
from posedrop.cli.options import Options, json_option


@click.command()
@click.option(
    "--policies",
    type=click.Path(path_type=Path, file_okay=False),
    help="Default: infra/policies of the source tree.",
)
@click.option(
    "--write-env",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the keys in this file (0600) instead of printing the new ones; read first if there.",
)
@click.option("--rotate", is_flag=True, help="New secrets for the users whose secret is not set.")
@click.pass_obj
def bootstrap(
    options: Options, policies: Path | None, write_env: Path | None, rotate: bool
) -> None:
    """Make a MinIO ready: buckets, notifications, expiry, and three keys with least rights.

    It looks first and changes only what differs, so run it at every deployment. MinIO's root key
    is read from POSEDROP_ROOT_ACCESS_KEY and POSEDROP_ROOT_SECRET_KEY; posedrop never runs with it
    (only `posedrop models push` needs a key like it). The three keys are POSEDROP_PRESIGN_,
    POSEDROP_HANDLERS_ and POSEDROP_WORKER_ACCESS_KEY and _SECRET_KEY; secrets that are not set are
    made here. Handlers and workers each take theirs as POSEDROP_S3_ACCESS_KEY and _SECRET_KEY.
    In notifications, entries for the targets fast and sure are replaced; all others are kept.

    MinIO only. SeaweedFS is prepared by `posedrop up`; on AWS make buckets, SQS notifications and
    IAM users with the tools you have there, from the same infra/policies.

    \b
    posedrop bootstrap --write-env posedrop-keys.env
    """
    from posedrop import bootstrap as steps

    steps.run(
        options.settings,
        click.echo,
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
        checks.show(findings, click.echo)
    sys.exit(1 if any(finding.state == checks.FAIL for finding in findings) else 0)


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


def _show_counts(counts: Mapping[str, int], as_json: bool) -> None:
    if as_json:
        display.print_json(counts)
    else:
        display.table([[str(count), name.replace("_", " ")] for name, count in counts.items()])
