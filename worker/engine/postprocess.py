"""DeepLabCut's postprocessor over a whole batch of pictures at once, with the same bits.

DeepLabCut calls its postprocessor once a picture. Its steps for networks that see the whole picture
(heatmaps, part affinities, SimCC, unique bodyparts, identities) are done here in arrays with a row
a picture. A step that is not known here is left to DeepLabCut's own code, a picture at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from deeplabcut.pose_estimation_pytorch.data import postprocessor as steps
from deeplabcut.pose_estimation_pytorch.post_processing.identity import assign_identity

Values = dict[str, npt.NDArray[Any]]
Raw = dict[str, Values]
"""By head and name, what ``get_predictions`` returns: arrays with a row a picture."""

#: Pixels of a picture in one of what the network saw.
_UNSCALED = (1.0, 1.0)


def postprocessed(
    postprocessor: Any,
    raw: Raw,
    size: tuple[int, int],
    offsets: tuple[float, float] = (0.0, 0.0),
) -> list[Values]:
    """Return what DeepLabCut's postprocessor makes of each picture of a batch.

    Args:
        postprocessor: DeepLabCut's, of a network that was shown whole pictures.
        raw: what the network's heads predict, as arrays with a row a picture.
        size: of each picture, (width, height) in pixels.
        offsets: where in a picture, (x, y) in pixels, what the network saw of it begins.

    Returns:
        For each picture its arrays by name: ``bodyparts`` (individuals, bodyparts, 3 or more) and
        whatever else the model has. They may be parts of larger arrays.

    Raises:
        KeyError: a head that the postprocessor wants is not there.
    """
    pictures = len(next(iter(next(iter(raw.values())).values())))
    if not _is_known(postprocessor):
        return [_one(postprocessor, raw, row, size, offsets) for row in range(pictures)]
    first, *others = postprocessor.components
    values = {
        name: np.array(raw[head][key]) for name, (head, key) in first.keys_to_concatenate.items()
    }
    for part in others:
        if type(part) is steps.RescaleAndOffset:
            values = _moved(part, values, offsets)
        else:
            values = _STEPS[type(part)](part, values)
    return [{name: value[row] for name, value in values.items()} for row in range(pictures)]


def _is_known(postprocessor: Any) -> bool:
    # No subclasses: what else they do would be lost.
    if type(postprocessor) is not steps.ComposePostprocessor or not postprocessor.components:
        return False
    first, *others = postprocessor.components
    if type(first) is not steps.ConcatenateOutputs:
        return False
    moves = [part for part in others if type(part) is steps.RescaleAndOffset]
    return all(type(part) in _STEPS or part in moves for part in others) and all(
        part.mode is steps.RescaleAndOffset.Mode.KEYPOINT for part in moves
    )


def _one(
    postprocessor: Any, raw: Raw, row: int, size: tuple[int, int], offsets: tuple[float, float]
) -> Values:
    mine = {
        head: {name: value[row] for name, value in named.items()} for head, named in raw.items()
    }
    context = {"image_size": size, "offsets": offsets, "scales": _UNSCALED}
    found, _ = postprocessor([mine], context)
    return dict(found)


# -- DeepLabCut's steps, each on arrays with a row a picture ---------------------------------------


def _moved(part: Any, values: Values, offsets: tuple[float, float]) -> Values:
    found = {}
    for name, value in values.items():
        found[name] = value.copy()
        if name in part.keys_to_rescale:
            # Where nothing is moved, -0.0 becomes 0.0 and what is no number stays so.
            moved = value[..., :2] * _UNSCALED + offsets
            found[name][..., :2] = moved
    return found


def _padded(part: Any, values: Values) -> Values:
    found = {}
    for name, value in values.items():
        shape = part.expected_shapes.get(name, ())
        if value.shape[1] == 0:
            value = np.empty((len(value), 0, *shape), float)
        elif value.ndim - 1 < 1 + len(shape):
            value = value.reshape(*value.shape[:2], *shape)
        lacking = part.max_individuals.get(name, 0) - value.shape[1]
        if lacking > 0:
            tail = (len(value), lacking, *value.shape[2:])
            padding = part.pad_value * np.ones(tail, value.dtype)
            value = np.concatenate([value, padding], axis=1)
        found[name] = value
    return found


def _trimmed(part: Any, values: Values) -> Values:
    return {name: value[:, : part.max_individuals[name]] for name, value in values.items()}


def _with_identities(part: Any, values: Values) -> Values:
    pose, maps = values[part.pose_key], values[part.identity_map_key]
    height, width = maps.shape[1:3]
    valid = np.isfinite(pose[..., :2]).all(axis=-1)
    places = np.zeros((*valid.shape, 2), int)
    places[valid] = np.rint(pose[valid][:, :2]).astype(int)
    across = places[..., 0].clip(0, width - 1)
    down = places[..., 1].clip(0, height - 1)
    scores = np.zeros((*valid.shape, maps.shape[3]))
    rows = np.nonzero(valid)[0]
    scores[valid] = maps[rows, down[valid], across[valid]]
    kept = {name: value for name, value in values.items() if name != part.identity_map_key}
    if part.keep_id_maps:
        kept[part.identity_map_key] = maps
    return {**kept, part.identity_key: scores}


def _assigned(part: Any, values: Values) -> Values:  # noqa: ARG001  # it reads its names nowhere
    pose, scores = values["bodyparts"], values["identity_scores"]
    order = np.stack([assign_identity(*row) for row in zip(pose, scores, strict=True)])
    rows = np.arange(len(pose))[:, None]
    return {**values, "bodyparts": pose[rows, order], "identity_scores": scores[rows, order]}


_STEPS: dict[type, Callable[[Any, Values], Values]] = {
    steps.PadOutputs: _padded,
    steps.TrimOutputs: _trimmed,
    steps.PredictKeypointIdentities: _with_identities,
    steps.AssignIndividualIdentities: _assigned,
}
