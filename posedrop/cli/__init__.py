"""The command line: ``posedrop up`` and what a person does with the API."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from posedrop import __version__
from posedrop.cli import models, operate, stack, videos
from posedrop.cli.options import Options
from posedrop.errors import PosedropError
from posedrop.settings import DEFAULT_DATA_DIR


class _Group(click.Group):
    """Commands whose errors are one line each."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PosedropError as error:
            _fail(error.message)
        except BrokenPipeError:
            raise  # of the output: click ends quietly
        except OSError as error:
            _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
        except KeyboardInterrupt:
            sys.exit(130)


def _fail(message: str) -> NoReturn:
    click.echo(f"posedrop: {message}", err=True)
    sys.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="POSEDROP_DATA_DIR",
    default=DEFAULT_DATA_DIR,
    show_default=True,
    help="Folder of `posedrop up`; settings are read there.",
)
@click.option(
    "--url", help="Address of the API; default: POSEDROP_URL, or what the data directory says."
)
@click.version_option(__version__, prog_name="posedrop")
@click.pass_context
def main(ctx: click.Context, data_dir: Path, url: str | None) -> None:
    """Drop a video into a bucket; get its pose data and a labelled video back.

    \b
    posedrop up                                      start everything, on this machine
    posedrop models push my-project --name mouse     a trained DeepLabCut project
    posedrop upload film.mp4 --analysis deeplabcut_2d --arg model=mouse --wait
    posedrop ls                                      the videos and their state
    posedrop download ANALYSIS_ID                    poses, plots, labelled video
    """
    ctx.obj = Options(data_dir, url)


for _command in (
    stack.up,
    stack.demo,
    videos.upload,
    videos.analyse,
    videos.list_,
    videos.show,
    videos.download,
    videos.cancel,
    videos.rm,
    videos.types,
    models.models_group,
    operate.bootstrap,
    operate.doctor,
    operate.reconcile,
    operate.reindex,
    operate.reingest,
    operate.dead_letters,
    operate.expire,
):
    main.add_command(_command)
