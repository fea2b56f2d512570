"""The command line: ``posedrop up`` and what a person does with the API."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from posedrop import __version__, embedded, models, settings
from posedrop.client import Client, File, Run, RunRow, Ticket
from posedrop.errors import ConfigurationError, PosedropError
from posedrop.settings import DEFAULT_DATA_DIR, ENV_FILE, Settings
from posedrop.storage import Storage

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Options:
    """What was said before the command."""

    data_dir: Path
    url: str | None
    _settings: Settings | None = field(default=None, repr=False)

    @property
    def settings(self) -> Settings:
        """The settings of the environment and of the data directory."""
        if self._settings is None:
            given = {} if self.url is None else {"url": self.url}
            self._settings = settings.load(self.data_dir, given)
        return self._settings

    def client(self) -> Client:
        """Return the API."""
        token = self.settings.api_token
        return Client(
            self.settings.url,
            token.get_secret_value() if token else None,
            multipart_bytes=self.settings.multipart_bytes,
        )

    def storage(self) -> Storage:
        """Return the object store.

        Raises:
            ConfigurationError: nothing says where it is.
        """
        told = any(name.startswith("POSEDROP_S3_") for name in os.environ)
        if not told and not (self.data_dir / ENV_FILE).is_file():
            raise ConfigurationError(
                f"{self.data_dir} holds no posedrop: start one with `posedrop up`, name its "
                "--data-dir, or set POSEDROP_S3_ENDPOINT and its keys"
            )
        return Storage(self.settings)


class _Group(click.Group):
    """Commands whose errors are one line each."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PosedropError as error:
            _fail(error.message)
        except KeyboardInterrupt:
            sys.exit(130)


def _fail(message: str) -> NoReturn:
    click.echo(f"posedrop: {message}", err=True)
    sys.exit(1)


def _named_values(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    """Return ``name=value`` by name: the value as JSON if it is any, else as text."""
    named: dict[str, Any] = {}
    for each in values:
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{each!r} is not name=value", ctx, param)
        try:
            named[name] = json.loads(text)
        except ValueError:
            named[name] = text
    return named


def _analysis_options(*, required: bool) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        command = click.option(
            "--arg",
            "args",
            multiple=True,
            callback=_named_values,
            help="Of the analysis, such as model=openfield; JSON, or else text. Repeatable.",
        )(command)
        return click.option(
            "--analysis", required=required, help="Such as deeplabcut_2d; `posedrop types` lists."
        )(command)

    return decorate


_json_option = click.option("--json", "as_json", is_flag=True, help="For a script: JSON.")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="POSEDROP_DATA_DIR",
    default=DEFAULT_DATA_DIR,
    show_default=True,
    help="Of `posedrop up`: its settings are read there.",
)
@click.option("--url", help="Of the API; default: POSEDROP_URL, or the one of the data directory.")
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


# -- a stack on this machine -----------------------------------------------------------------------


@main.command()
@click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Made if there is none."
)
@click.option("--host", default=embedded.DEFAULT_HOST, show_default=True, help="To listen on.")
@click.option("--port", default=embedded.DEFAULT_PORT, show_default=True, help="Of the API.")
@click.option("--s3-port", default=embedded.DEFAULT_S3_PORT, show_default=True, help="Of S3.")
@click.pass_obj
def up(options: Options, data_dir: Path | None, host: str, port: int, s3_port: int) -> None:
    """Start the object store, the API and the workers, until Ctrl-C.

    Stopped or killed at any moment, it goes on where it was when it is started again. On another
    address than loopback, callers need the API token that is printed.

    \b
    posedrop up
    posedrop up --data-dir /data/lab --host 0.0.0.0
    """
    embedded.up(data_dir or options.data_dir, host, port, s3_port)


@main.command()
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("posedrop-demo"),
    show_default=True,
    help="Made if there is none.",
)
@click.option("--frames", default=300, show_default=True, help="Length of the film.")
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
    from posedrop.demo import run

    sys.exit(0 if run(data_dir, frames=frames, leave=leave) else 1)


# -- videos ----------------------------------------------------------------------------------------


@main.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
)
@_analysis_options(required=False)
@click.option("--wait", is_flag=True, help="Until the results are there; 1 if one has none.")
@_json_option
@click.pass_obj
def upload(
    options: Options,
    files: tuple[Path, ...],
    analysis: str | None,
    args: dict[str, Any],
    wait: bool,
    as_json: bool,
) -> None:
    """Upload videos, and have them analysed.

    A video's hash goes along: the store takes no other content. Large ones go up in parts, and a
    part that fails goes up again.

    \b
    posedrop upload film.mp4
    posedrop upload *.mp4 --analysis deeplabcut_2d --arg model=mouse
    posedrop upload film.mp4 --analysis dummy --arg seconds=5 --wait
    """
    failed = False
    with options.client() as client:
        tickets = [_upload(client, path, analysis, args, as_json) for path in files]
        if not wait:
            if as_json:
                _print_json([{"path": str(p), "file_id": t.file_id} for p, t in tickets])
            return
        outcomes = []
        for path, ticket in tickets:
            file = client.wait_for_file(ticket.file_id)
            run = _run_of(client, file, analysis, args, path.name)
            failed |= file.state == "refused" or (run is not None and run.status == "failed")
            outcomes.append({"path": str(path), "file": _plain(file), "run": run and _plain(run)})
            if not as_json:
                _show_outcome(path, file, run)
    if as_json:
        _print_json(outcomes)
    sys.exit(1 if failed else 0)


def _upload(
    client: Client, path: Path, analysis: str | None, args: Mapping[str, Any], quiet: bool
) -> tuple[Path, Ticket]:
    with _bar(path.name, path.stat().st_size, quiet) as on_bytes:
        ticket = client.upload(path, analysis=analysis, args=args, on_bytes=on_bytes)
    if not quiet:
        click.echo(f"{path}: file {ticket.file_id}")
    return path, ticket


def _run_of(
    client: Client, file: File, analysis: str | None, args: Mapping[str, Any], label: str
) -> Run | None:
    if file.state == "refused":
        return None
    if analysis is not None:
        # The same request has the same name, so this asks for nothing new: it tells the id.
        analysis_id = client.analyse(file.file_id, analysis, args).analysis_id
    elif file.analyses:
        analysis_id = file.analyses[0].analysis_id
    else:
        return None
    return _wait(client, analysis_id, label)


def _show_outcome(path: Path, file: File, run: Run | None) -> None:
    if file.refusal is not None:
        click.echo(f"{path}: refused, {file.refusal.reason}: {file.refusal.message}")
    elif run is None:
        click.echo(f"{path}: ready; no analysis was asked for")
    else:
        _show_run(run)


@main.command()
@click.argument("file")
@_analysis_options(required=True)
@click.option("--force", is_flag=True, help="Run it anew though results exist.")
@click.option("--wait", is_flag=True, help="Until the results are there; 1 if it has none.")
@_json_option
@click.pass_obj
def analyse(
    options: Options,
    file: str,
    analysis: str,
    args: dict[str, Any],
    force: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Ask for an analysis of a video, named by its file id or its key.

    \b
    posedrop analyse day1/film.mp4 --analysis deeplabcut_2d --arg model=mouse
    posedrop analyse mfzgs3tfebzw63lf --analysis superanimal --arg species=topviewmouse --wait
    """
    with options.client() as client:
        file_id = client.file_id_of(file)
        started = client.analyse(file_id, analysis, args, force=force)
        if not wait:
            if as_json:
                _print_json(_plain(started))
            else:
                click.echo(f"{started.analysis_id} {started.status}")
            return
        run = _wait(client, started.analysis_id, file)
    if as_json:
        _print_json(_plain(run))
    else:
        _show_run(run)
    sys.exit(1 if run.status == "failed" else 0)


@main.command("ls")
@click.argument("query", required=False)
@click.option("--files", "kind", flag_value="files", default="files", help="Videos (default).")
@click.option("--analyses", "kind", flag_value="analyses", help="Runs.")
@click.option("--state", help="Such as ready, refused; running, succeeded, failed.")
@click.option("--limit", default=100, show_default=True, help="So many, the newest.")
@_json_option
@click.pass_obj
def list_(
    options: Options, query: str | None, kind: str, state: str | None, limit: int, as_json: bool
) -> None:
    """List videos or runs, the newest first; QUERY searches in all their words.

    \b
    posedrop ls
    posedrop ls day1 --state refused
    posedrop ls --analyses --state running
    """
    with options.client() as client:
        if kind == "files":
            files = _first(limit, client.files(query, state=state))
            rows = [
                [file.file_id, file.state, _size(file.size), file.created_at[:19], file.key]
                for file in files
            ]
            items = [_plain(file) for file in files]
        else:
            runs: list[RunRow] = _first(limit, client.runs(query, state=state))
            rows = [
                [run.analysis_id, run.status, run.analysis, run.created_at[:19], run.key]
                for run in runs
            ]
            items = [_plain(run) for run in runs]
    if as_json:
        _print_json(items)
    else:
        _table(rows)


@main.command()
@click.argument("id_", metavar="ID")
@_json_option
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
        _print_json(_plain(found))
    elif isinstance(found, Run):
        _show_run(found)
    else:
        _show_file(found)


@main.command()
@click.argument("analysis_id")
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Default: a folder named like the id.",
)
@_json_option
@click.pass_obj
def download(options: Options, analysis_id: str, folder: Path | None, as_json: bool) -> None:
    """Download all files of a run; what is there and whole is not fetched again.

    \b
    posedrop download k5x2wq7mfzgs3tfe
    posedrop download k5x2wq7mfzgs3tfe --to results/day1
    """
    with options.client() as client:
        run = client.run(analysis_id)
        if not run.over:
            raise PosedropError(f"{analysis_id} is {run.status}; it has no files yet")
        total = sum(file.size for file in run.files)
        with _bar(analysis_id, total, as_json) as on_bytes:
            paths = client.download(run, folder or Path(analysis_id), on_bytes=on_bytes)
    if as_json:
        _print_json([str(path) for path in paths])
    else:
        for path in paths:
            click.echo(path)


@main.command()
@click.argument("analysis_id")
@click.pass_obj
def cancel(options: Options, analysis_id: str) -> None:
    """Stop a run that waits or goes on.

    \b
    posedrop cancel k5x2wq7mfzgs3tfe
    """
    with options.client() as client:
        run = client.run(analysis_id)
        if run.over:
            raise PosedropError(f"{analysis_id} is over: {run.status}; `posedrop rm` deletes it")
        click.echo(f"{analysis_id} {client.cancel(analysis_id)}")


@main.command()
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
            click.echo(f"{found.key} deleted, with its results")
        elif not found.over:
            raise PosedropError(f"{id_} is {found.status}; `posedrop cancel {id_}` stops it first")
        else:
            click.echo(f"{id_} {client.cancel(found.analysis_id)}")


# -- models and upkeep -----------------------------------------------------------------------------


@main.command()
@_json_option
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
        _print_json(items)
        return
    for item in items:
        click.echo(f"{item['name']}: {item['summary']}")
        for name, schema in item["args"].get("properties", {}).items():
            default = f" (default {json.dumps(schema['default'])})" if "default" in schema else ""
            click.echo(f"  {name}{default}  {schema.get('description', '')}".rstrip())


@main.group("models")
def models_group() -> None:
    """Push trained models into the models bucket, and list them."""


@models_group.command("push")
@click.argument("project", type=click.Path(path_type=Path, exists=True))
@click.option("--name", required=True, help="What `--arg model=` will say.")
@click.option("--shuffle", type=int, help="Default: 1, or the only one there is.")
@click.option("--snapshot", help="Such as snapshot-best-120, or all; default: the config's.")
@_json_option
@click.pass_obj
def models_push(
    options: Options,
    project: Path,
    name: str,
    shuffle: int | None,
    snapshot: str | None,
    as_json: bool,
) -> None:
    """Upload what of a trained DeepLabCut 3 project inference needs (or an exported .pt).

    \b
    posedrop models push ~/dlc/openfield-2026 --name openfield
    posedrop models push ~/dlc/openfield-2026 --name openfield --shuffle 2

    A folder with weights of DeepLabCut's model zoo, named as the zoo names them, becomes what
    `--analysis superanimal` runs; asking for it without them says which files to get:

    \b
    posedrop models push ~/zoo --name superanimal_topviewmouse
    """
    model = models.push(
        options.storage(),
        options.settings.models_bucket,
        project,
        name,
        shuffle=shuffle,
        snapshot=snapshot,
        on_file=None if as_json else lambda file: click.echo(f"  {file.path} {_size(file.size)}"),
    )
    if as_json:
        _print_json(model.model_dump(mode="json", by_alias=True))
    else:
        click.echo(f"{model.name} {model.digest[:12]}: {', '.join(model.bodyparts)}")


@models_group.command("ls")
@_json_option
@click.pass_obj
def models_ls(options: Options, as_json: bool) -> None:
    """List the models.

    \b
    posedrop models ls
    """
    with options.client() as client:
        items = client.models()
    if as_json:
        _print_json(items)
    else:
        _table(
            [
                [item["name"], item["digest"][:12], item["net_type"], ", ".join(item["bodyparts"])]
                for item in items
            ]
        )


@main.command()
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


@main.command()
@_json_option
@click.pass_obj
def doctor(options: Options, as_json: bool) -> None:
    """Check store, keys, events, broker, API, codecs and disk; say what to do. 1 if any fails.

    \b
    posedrop doctor
    """
    from posedrop import doctor as checks

    findings = checks.examine(lambda: options.settings)
    if as_json:
        _print_json([finding.as_json() for finding in findings])
    else:
        checks.show(findings, click.echo)
    sys.exit(1 if any(finding.state == checks.FAIL for finding in findings) else 0)


@main.command()
@_json_option
@click.pass_obj
def reconcile(options: Options, as_json: bool) -> None:
    """Compare buckets, index and queue now, and repair what differs (it also runs by itself).

    \b
    posedrop reconcile
    """
    with options.client() as client:
        _show_counts(client.reconcile(), as_json)


@main.command()
@_json_option
@click.pass_obj
def reindex(options: Options, as_json: bool) -> None:
    """Make the index anew from the buckets.

    \b
    posedrop reindex
    """
    with options.client() as client:
        _show_counts(client.reindex(), as_json)


# -- showing ---------------------------------------------------------------------------------------


def _find(client: Client, text: str) -> File | Run:
    """Return the video or the run that a person named."""
    try:
        return client.file(client.file_id_of(text))
    except PosedropError as error:
        if error.code != "not_found":
            raise
    return client.run(text)


def _wait(client: Client, analysis_id: str, label: str) -> Run:
    tty = sys.stderr.isatty()
    said = ""

    def on_progress(run: Run) -> None:
        nonlocal said
        line = f"{label}: {describe_progress(run)}"
        if tty:
            click.echo(f"\r\x1b[K{line}", nl=False, err=True)
        elif run.status != said:
            click.echo(line, err=True)
        said = run.status

    try:
        return client.wait(analysis_id, on_progress=on_progress)
    finally:
        if tty:
            click.echo(err=True)


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


def _show_file(file: File) -> None:
    click.echo(f"{file.key}: {file.state}, {_size(file.size)}")
    if file.probe is not None:
        p = file.probe
        click.echo(
            f"  {p['width']}x{p['height']} pixels, {p['frames']} frames, {p['fps']:.4g} frames/s, "
            f"{p['codec']}"
        )
    if file.sha256 is not None:
        click.echo(f"  sha256 {file.sha256}")
    if file.duplicate_of is not None:
        click.echo(f"  the same content as {file.duplicate_of}")
    if file.refusal is not None:
        click.echo(f"  refused, {file.refusal.reason}: {file.refusal.message}")
    _table([[run.analysis_id, run.status, run.analysis] for run in file.analyses], indent="  ")


def _show_run(run: Run) -> None:
    click.echo(f"{run.analysis_id} {run.analysis}: {describe_progress(run)}")
    if run.error is not None:
        click.echo(f"  {run.error.code}: {run.error.message}")
        if run.error.log_tail:
            click.echo("\n".join(f"    {line}" for line in run.error.log_tail.splitlines()[-10:]))
    _table([[file.name, _size(file.size)] for file in run.files], indent="  ")
    if run.files:
        click.echo(f"  posedrop download {run.analysis_id}")


def _show_counts(counts: Mapping[str, int], as_json: bool) -> None:
    if as_json:
        _print_json(counts)
    else:
        _table([[str(count), name.replace("_", " ")] for name, count in counts.items()])


@contextmanager
def _bar(label: str, length: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show bytes as they go; on a terminal only, and on stderr, so that output stays clean."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=length, label=label[:40], file=sys.stderr) as bar:
        yield bar.update


def _table(rows: Iterable[list[str]], indent: str = "") -> None:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo((indent + "  ".join(cells)).rstrip())


def _size(size: int | None) -> str:
    if size is None:
        return "-"
    amount = float(size)
    for unit in ("B", "KB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"


T = TypeVar("T")


def _first(limit: int, items: Iterable[T]) -> list[T]:
    return [item for item, _ in zip(items, range(limit), strict=False)]


def _plain(answer: Any) -> Any:
    return answer.model_dump(mode="json")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
