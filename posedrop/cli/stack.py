"""A stack on this machine: up, demo."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from posedrop.cli.options import Options
from posedrop.embedded import stack
from posedrop.errors import ConfigurationError


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for all data; made if there is none.",
)
@click.option("--host", default=stack.DEFAULT_HOST, show_default=True, help="Address to listen on.")
@click.option("--port", default=stack.DEFAULT_PORT, show_default=True, help="Port of the API.")
@click.option("--s3-port", default=stack.DEFAULT_S3_PORT, show_default=True, help="Port of S3.")
@click.pass_obj
def up(options: Options, data_dir: Path | None, host: str, port: int, s3_port: int) -> None:
    """Start the object store, the API and the workers, until Ctrl-C.

    Stopped or killed at any moment, it goes on where it was when it is started again. Callers need
    its API token: the link that is printed gives it to a browser, and `posedrop` finds it.

    \b
    posedrop up
    posedrop up --data-dir /data/lab --host 0.0.0.0
    """
    _refuse_windows()
    stack.up(data_dir or options.data_dir, host, port, s3_port)


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=stack.DEMO_DATA_DIR,
    show_default=True,
    help="Folder for all data; made if there is none.",
)
@click.option("--frames", default=300, show_default=True, help="Length of the film, in frames.")
@click.option(
    "--exit/--keep",
    "leave",
    default=False,
    help="End when done, with 0 if the poses are right; or stay up to look around (default).",
)
def demo(data_dir: Path, frames: int, leave: bool) -> None:
    """Show the whole way: film a drawn mouse, upload it, track it, compare with the truth.

    \b
    posedrop demo
    posedrop demo --exit --frames 100
    """
    _refuse_windows()
    from posedrop.cli.demo import run

    sys.exit(0 if run(data_dir, frames=frames, leave=leave) else 1)


def _refuse_windows() -> None:
    if os.name == "nt":
        raise ConfigurationError(
            "it runs on Linux and macOS, and here in WSL (`wsl --install`); Windows itself sends "
            "films: posedrop upload, posedrop watch"
        )
