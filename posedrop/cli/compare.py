"""``posedrop compare``: two runs of one film, or of each film of a folder, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from statistics import median
from typing import Any

import click

from posedrop.buckets.records.comparison import Distances, KeypointDistances, WorstFrame
from posedrop.cli import display
from posedrop.cli.options import Options, json_option
from posedrop.client import Client, ComparisonAnswer, RunRow, flat
from posedrop.errors import PosedropError
from posedrop.terminal import say

_COLUMNS = ["median", "p95", "p99", "<=1 px", "<=2 px", "<=5 px", "positions", "disagree"]
#: How many of the frames that differ most are shown; --json has them all.
_FRAMES = 10


@click.command()
@click.argument("runs", metavar="[A B]", nargs=-1)
@click.option("--prefix", help="Compare the newest runs of both models on each video below it.")
@click.option("--model-a", help="With --prefix: the first model.")
@click.option("--model-b", help="With --prefix: the second model.")
@click.option("--again", is_flag=True, help="Have it tried again, if they could not be compared.")
@json_option
@click.pass_obj
def compare(
    options: Options,
    runs: tuple[str, ...],
    prefix: str | None,
    model_a: str | None,
    model_b: str | None,
    again: bool,
    as_json: bool,
) -> None:
    """Tell how far apart two runs of one video put their keypoints, in pixels.

    Frames are matched by their number, bodyparts by name; several animals in each frame anew, or by
    name where both runs tell them apart by identity. Positions on which both runs are sure
    (likelihood of pcutoff or more) and that are more than 5 pixels apart disagree.

    Ends with 1 if one of the videos below --prefix could not be compared.

    \b
    posedrop compare k5x2wq7mfzgs3tfe zw63lfmfzgs3tfeb
    posedrop compare --prefix day1/ --model-a openfield --model-b openfield-2
    """
    if prefix is not None:
        if runs or model_a is None or model_b is None:
            raise click.UsageError("--prefix compares two models: say --model-a and --model-b")
        with options.client() as client:
            _compare_all(client, prefix, (model_a, model_b), again, as_json)
        return
    if len(runs) != 2:
        raise click.UsageError("name two runs, or a folder by --prefix")
    with options.client() as client:
        found = client.compare(runs[0], runs[1], again=again)
    if as_json:
        display.print_json(display.plain(found))
    else:
        _show(found)


def _compare_all(
    client: Client, prefix: str, models: tuple[str, str], again: bool, as_json: bool
) -> None:
    """Compare the newest runs of two models, video by video."""
    newest: dict[str, dict[str, RunRow]] = {}
    for video in flat.videos_below(client, prefix):
        # Of each video, as the runs of one whose content has another name are listed by that name.
        for run in client.runs(file_id=video.file_id):
            model = _model_of(run, models)
            if model is not None and run.status in {"succeeded", "partial"}:
                newest.setdefault(video.key, {}).setdefault(model, run)
    if not newest:
        raise PosedropError(f"no video below {prefix!r} has a run of {models[0]} or {models[1]}")
    pairs: dict[str, tuple[str, str]] = {}
    found: dict[str, ComparisonAnswer] = {}
    left_out: dict[str, str] = {}
    for key, by_model in sorted(newest.items()):
        lacking = [model for model in models if model not in by_model]
        if lacking:
            left_out[key] = f"no finished run of {' or '.join(lacking)}"
        else:
            pairs[key] = by_model[models[0]].analysis_id, by_model[models[1]].analysis_id
    for pair in pairs.values():  # all are asked for before the first is waited for
        with suppress(PosedropError):
            client.compare(*pair, again=again, seconds=0)
    for key, pair in pairs.items():
        try:
            found[key] = client.compare(*pair)
        except PosedropError as error:
            if error.code in {"unreachable", "unauthorized"}:
                raise
            left_out[key] = error.message
    total = _sum(each.total for each in found.values())
    if as_json:
        display.print_json(
            {
                "videos": {key: display.plain(each) for key, each in found.items()},
                "total": total,
                "left_out": left_out,
            }
        )
    else:
        rows = [[key, *_cells(each.total.model_dump())] for key, each in found.items()]
        display.table([["video", *_COLUMNS], *rows, ["total", *_cells(total)]])
        for key, why in left_out.items():
            say(f"{key}: not compared, {why}", err=True)
    if left_out:
        raise SystemExit(1)


def _model_of(run: RunRow, models: Iterable[str]) -> str | None:
    """Return which of two models, by name or by name and digest, a run is of."""
    used = str(run.args.get("model"))
    return next((model for model in models if used == model or used.startswith(f"{model}@")), None)


def _sum(totals: Iterable[Distances]) -> dict[str, Any]:
    """Return the counts and shares of several videos together.

    Percentiles can't be had of percentiles: ``median`` is that of the videos' medians, and the
    others are left out.
    """
    given = list(totals)
    counts = ("positions", "only_a", "only_b", "both_sure", "disagree")
    found: dict[str, Any] = {name: sum(getattr(each, name) for each in given) for name in counts}
    for name in ("within_1", "within_2", "within_5"):
        near = sum(getattr(each, name) * each.positions for each in given if each.positions)
        found[name] = near / found["positions"] if found["positions"] else None
    medians = [each.median for each in given if each.median is not None]
    most = [each.most for each in given if each.most is not None]
    return {
        **found,
        "median": median(medians) if medians else None,
        "most": max(most, default=None),
    }


def _show(found: ComparisonAnswer) -> None:
    for letter, run, other in (("a", found.a, found.b), ("b", found.b, found.a)):
        of = f", {run.model}" if run.model else ""
        say(f"{letter}: {run.analysis_id}{of}, pcutoff {run.pcutoff:g}, {run.frames} frames")
        if run.only:
            say(f"   {other.analysis_id} has no {', '.join(run.only)}")
    how = {
        "one": "",
        "names": "; animals matched by name",
        "distance": "; animals matched in each frame anew, as near as can be",
    }
    say(f"{found.frames} frames in both{how[found.matched]}")
    several = len(found.a.individuals) > 1

    def name_of(each: KeypointDistances | WorstFrame) -> str:
        return f"{each.individual} {each.bodypart}" if several else each.bodypart

    rows = [[name_of(each), *_cells(each.model_dump())] for each in found.keypoints]
    display.table([["", *_COLUMNS], *rows, ["all", *_cells(found.total.model_dump())]])
    worst = found.worst_sure or found.worst
    if worst:
        say("farthest apart" + (", where both are sure:" if found.worst_sure else ":"))
        display.table(
            [
                [
                    f"frame {each.frame}",
                    f"{each.seconds:.2f} s",
                    name_of(each),
                    f"{each.distance:.1f} px",
                ]
                for each in worst[:_FRAMES]
            ],
            indent="  ",
        )


def _cells(distances: dict[str, Any]) -> list[str]:
    """Return distances as the cells of a row."""
    pixels = [distances.get(name) for name in ("median", "p95", "p99")]
    shares = [distances[name] for name in ("within_1", "within_2", "within_5")]
    disagree, sure = distances["disagree"], distances["both_sure"]
    return [
        *("-" if each is None else f"{each:.2f}" for each in pixels),
        *("-" if each is None else f"{each:.1%}" for each in shares),
        str(distances["positions"]),
        f"{disagree} of {sure}",
    ]
