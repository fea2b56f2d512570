"""The command line: ``posedrop up`` and what a person does with the API."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
from pydantic import ValidationError

from posedrop import __version__, logs
from posedrop.cli import batches, compare, explore, folders, models, operate, stack, videos
from posedrop.cli.options import Options
from posedrop.errors import ConfigurationError, PosedropError
from posedrop.settings import DEFAULT_DATA_DIR
from posedrop.terminal import printable, say


class _Group(click.Group):
    """Commands whose errors are one line each, with nothing in it that steers a terminal."""

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a name may not fit the terminal's locale
                stream.reconfigure(errors="backslashreplace")
        if logging.lastResort is not None:  # for whatever warns where nothing is set up
            logging.lastResort.setFormatter(logs.ShortFormatter())
        with _printable_errors():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _printable_errors():
                return super().invoke(ctx)
        except ConfigurationError as error:
            _fail(*error.message.split("\n"))  # posedrop's own lines
        except PosedropError as error:
            _fail(error.message)
        except BrokenPipeError:
            raise  # of the output: click ends quietly
        except OSError as error:
            _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
        except (ValidationError, json.JSONDecodeError) as error:
            what = str(error).partition("\n")[0]
            _fail(f"the server's answer is none of posedrop's, or of another version: {what}")
        except UnicodeEncodeError as error:  # only a person's own words can be no text
            _fail(f"{str(error.object)[:200]!r} is not UTF-8, as names have to be")
        except KeyboardInterrupt:
            sys.exit(130)


@contextmanager
def _printable_errors() -> Iterator[None]:
    """Have click's own errors quote what was said so that it can be shown: *.mp4 says anything."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise  # it quotes nothing
    except click.UsageError as error:
        raise click.UsageError(printable(error.format_message()), error.ctx) from error


def _fail(*lines: str) -> NoReturn:
    for line in (f"posedrop: {lines[0]}", *lines[1:]):
        say(line, err=True)
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
    folders.watch_,
    videos.analyse,
    videos.list_,
    videos.show,
    videos.download,
    videos.export,
    videos.methods_,
    compare.compare,
    videos.cancel,
    batches.retry,
    batches.batches_,
    videos.rm,
    videos.types,
    models.models_group,
    operate.bootstrap,
    operate.doctor,
    operate.settings_,
    explore.explore,
    operate.reconcile,
    operate.reindex,
    operate.reingest,
    operate.dead_letters,
    operate.notify_group,
    operate.expire,
):
    main.add_command(_command)
