"""Validation of requests: a known analysis, its complete arguments, and a model that is there."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from handlers.context import Context
from handlers.runs import rules
from posedrop import analyses, bounded
from posedrop.buckets import layout
from posedrop.buckets.records.models import Model
from posedrop.buckets.records.runs import RunRef
from posedrop.errors import BadRequestError, StorageError
from posedrop.models import catalog

log = logging.getLogger(__name__)


class ValidRequest(NamedTuple):
    """A valid request for an analysis: everything but the video."""

    analysis: analyses.Analysis
    args: dict[str, Any]
    model: Model | None
    poses_of: RunRef | None = None
    """The run whose poses it takes, once that is settled (``handlers.runs.poses_of``)."""


def canonical(value: Mapping[str, Any]) -> str:
    """Return JSON that is the same for the same arguments."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def analysis_id_of(sha256: str, request: ValidRequest, force: str | None) -> str:
    """Return the id of a run: the same content and the same request give the same one."""
    # The model counts by its digest: the same weights under another name are the same request.
    args = {name: value for name, value in request.args.items() if name != "model"}
    return layout.make_id(
        sha256,
        request.analysis.name,
        canonical(args),
        request.model.digest if request.model else "",
        request.analysis.version,
        force or "",
    )


def validate(context: Context, analysis: str, args: Mapping[str, Any]) -> ValidRequest:
    """Return the request as it can be carried out.

    Raises:
        BadRequestError: no such analysis, argument or model; ``field`` names it.
    """
    found = analyses.get(analysis)
    if found.needs_model and args.get("model") is None:
        raise _no_model(context, found)
    with _taking_args(analysis):
        complete = found.normalise(args)
    model = None
    if found.needs_model:
        model = catalog.resolve(context.storage, context.settings.models_bucket, complete["model"])
        if found.check is not None:
            with _taking_args(analysis):
                found.check(found.args.model_validate(complete), model)
    return ValidRequest(found, complete, model)


@contextmanager
def _taking_args(analysis: str) -> Iterator[None]:
    """Let what an analysis raises at args end in words.

    It is anybody's plug-in: what it can't take must hold up nothing else.
    """
    try:
        yield
    except (BadRequestError, StorageError):
        raise
    except Exception as error:
        log.warning("%s fails at args", analysis, exc_info=error)
        words = f"{analysis} can't take these args: {error!r}"
        raise BadRequestError(words[:1000], code="bad_args", field="args") from error


def validate_rule(context: Context, rule: rules.Rule) -> ValidRequest | None:
    """Return what a rule asks for, None if that is nothing.

    Raises:
        BadRequestError: it can't be followed.
    """
    if rule.problem is not None:
        raise rule.problem
    if rule.analysis is None:
        return None
    wanted = validate(context, rule.analysis, rule.args or {})
    if wanted.analysis.takes_poses:
        raise BadRequestError(
            f"{rule.analysis} is asked for when a film has its poses (posedrop analyse), not for "
            "one that has just come",
            code="takes_poses",
            field="analysis",
        )
    return wanted


def parse_args(args: str | None) -> dict[str, Any]:
    """Return arguments that travelled as a JSON text.

    Raises:
        BadRequestError: the text is no JSON object.
    """
    try:
        value = bounded.loads(args or "{}")
    except ValueError as error:
        raise BadRequestError(
            f"args is not JSON ({error}): {(args or '')[:80]}", code="bad_args", field="args"
        ) from error
    if not isinstance(value, dict):
        raise BadRequestError(
            'args is not a JSON object like {"seconds": 5}', code="bad_args", field="args"
        )
    return value


def _no_model(context: Context, analysis: analyses.Analysis) -> BadRequestError:
    """Return what to do for an analysis that was asked for without its model."""
    there = catalog.list_models(context.storage, context.settings.models_bucket)
    names = list(dict.fromkeys(model.name for model in there if _takes(analysis, model)))
    which = analysis.args.model_fields["model"].description
    return BadRequestError(
        f"{analysis.name} needs args.model ({which}); say --arg model=NAME, in JSON "
        + '"args": {"model": "NAME"}. '
        + (
            f"There are: {', '.join(names)}"
            if names
            else "None is there yet; `posedrop models push` puts one there, its --help says how"
        ),
        code="bad_args",
        field="args.model",
    )


def _takes(analysis: analyses.Analysis, model: Model) -> bool:
    try:
        complete = analysis.normalise({"model": model.name})
        if analysis.check is not None:
            analysis.check(analysis.args.model_validate(complete), model)
    except BadRequestError as error:
        return error.code == "weights_missing"  # of the networks that it would take by default
    return True
