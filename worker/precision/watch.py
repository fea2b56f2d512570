"""Whether noise in what a network computes could change which keypoints are found in it.

A faster arithmetic errs a little. Of each kind of head that DeepLabCut reads keypoints from, a
watch here knows which of its numbers decide, and by how much they may be off before a keypoint
goes elsewhere. Heads of an unknown kind are computed exactly (:mod:`worker.precision.heads`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

#: Cells that rival a peak reach this share of its height.
LIKE = 0.9
#: Where it is steep none does, and where some do they may err by little by chance. So the noise is
#: at least ``TYPICAL`` times the step between two cells that reach this share of the peak's
#: likelihood, as the root of the mean square of all has it.
LIKELY, TYPICAL = 0.25, 2.0
#: By such a share two sigmoids differ that are the same but for how they are rounded.
TIED = 2.0**-22

#: Of one head, by name: a tensor with a row a picture.
Named = dict[str, Tensor]


class Watch(ABC):
    """A watch over one head: could its outputs, a little different, put a keypoint elsewhere?

    ``outputs`` are the head's, as ``model(x)`` returns them; ``predictions`` what
    ``model.get_predictions`` makes of them; each a dict of tensors with a row a picture.
    """

    scale = 1.0
    """Pixels of a frame in one of the network's picture, at most: crops are resized."""

    again = 0.08
    """Of a film that nobody has seen yet, this share of pictures is taken to be unsure."""

    def __init__(self, model: Any, name: str, pcutoff: float) -> None:
        """Watch the head ``name`` of ``model``, DeepLabCut's PoseModel.

        Keypoints below ``pcutoff`` are not held to anything: nobody uses them.
        """
        self.predictor = model.heads[name].predictor
        self.stride = model.get_stride(name)
        self.pcutoff = pcutoff

    @classmethod
    def knows(cls, predictor: Any) -> bool:  # noqa: ARG003  # most know their class however it is set
        """Tell whether the watch knows a predictor of its class that is set up like this one."""
        return True

    @abstractmethod
    def shown(self, predictions: Named) -> Tensor:
        """Return which keypoints pictures show above the cutoff; (n, keypoints), bool."""

    @abstractmethod
    def noise(self, exact: Named, fast: Named) -> float:
        """Return by how much the outputs of the fast arithmetic differ, at most, where it counts.

        That may be infinite, or no number, if some of these are.

        Args:
            exact: the outputs of the exact one.
            fast: of the same pictures.
        """

    @abstractmethod
    def largest(self, outputs: Named) -> Tensor:
        """Return each picture's largest output, that an error of fp32 is a share of; (n,)."""

    @abstractmethod
    def unsure(self, outputs: Named, noise: float | Tensor, spread: float) -> Tensor:
        """Return which pictures' keypoints such noise could move; (n,), bool.

        Args:
            noise: one for all, or (n,).
            spread: pixels; what moves a keypoint by less does not matter.
        """

    @abstractmethod
    def moved(self, exact: Named, fast: Named) -> Tensor:
        """Return how far the keypoint that counts and moved most is in ``fast``; (n,), pixels.

        Args:
            exact: predictions of the exact arithmetic, whose keypoints above the cutoff count.
            fast: of the same pictures; infinitely far where they join keypoints otherwise.
        """


class HeatmapWatch(Watch):
    """A watch over heatmaps with one peak a keypoint: cells within the noise of it rival it."""

    def shown(self, predictions: Named) -> Tensor:
        """Return which keypoints pictures show above the cutoff."""
        found: Tensor = predictions["poses"][:, 0, :, 2] >= self.pcutoff
        return found

    def noise(self, exact: Named, fast: Named) -> float:
        """Return by how much the steps from peak to rivals differ, at most."""
        heat, other = exact["heatmap"].flatten(2), fast["heatmap"].flatten(2)
        top = self._likelihood(heat.amax(dim=2))
        # What only the fast one shows is met by it, too; what is not a number counts.
        counts = (top >= self.pcutoff) | ~(self._likelihood(other.amax(dim=2)) < self.pcutoff)
        cells = (self._likelihood(heat) >= LIKELY * top[..., None]) & counts[..., None]
        typical = TYPICAL * typical_step(heat, other, cells)
        return float(torch.maximum(noise_of_steps(heat, other, counts), typical))

    def largest(self, outputs: Named) -> Tensor:
        """Return each picture's largest value of a heatmap."""
        found: Tensor = outputs["heatmap"].abs().amax(dim=(1, 2, 3))
        return found

    def unsure(self, outputs: Named, noise: float | Tensor, spread: float) -> Tensor:
        """Return where the cells that could be the highest are further apart than ``spread``."""
        top = _top(outputs)
        step = noise[:, None] if isinstance(noise, Tensor) else noise
        rivals = self._reaches(outputs["heatmap"], (top - step)[..., None, None])
        # What does not compare, because it is not a number, is unsure; so is what overflowed.
        counts = ~(self._likelihood(top) < self.pcutoff - step)
        wild = overflowed(outputs["heatmap"])
        open_ = (counts & (rivals.sum(dim=(2, 3)) != 1)).any(dim=1)
        rows = open_.nonzero().flatten()
        if len(rows):  # few: most keypoints have no rival at all
            some = {name: values[rows] for name, values in outputs.items()}
            close = ~(self._span(some, rivals[rows]) * self.scale <= spread) & counts[rows]
            open_[rows] = close.any(dim=1)
        return open_ | wild

    def moved(self, exact: Named, fast: Named) -> Tensor:
        """Return how far keypoints are apart."""
        true, poses = exact["poses"][:, 0], fast["poses"][:, 0]
        moved: Tensor = (poses[..., :2] - true[..., :2]).norm(dim=-1) * self.scale
        return torch.where(true[..., 2] >= self.pcutoff, moved, 0.0).amax(dim=1)

    def _reaches(self, heat: Tensor, least: Tensor) -> Tensor:
        """Return which cells are no lower than ``least``, for all that DeepLabCut can tell."""
        if not self.predictor.apply_sigmoid:
            return heat >= least
        # It compares sigmoids, which are equal for more and more cells the nearer they come to 1.
        return (heat >= least) | (heat.sigmoid() >= (1 - TIED) * least.sigmoid())

    def _likelihood(self, top: Tensor) -> Tensor:
        return top.sigmoid() if self.predictor.apply_sigmoid else top

    def _span(self, outputs: Named, rivals: Tensor) -> Tensor:
        """Return how far apart, in pixels, the cells that are ``rivals`` put a keypoint."""
        heat = outputs["heatmap"]
        n, keypoints, height, width = heat.shape
        # As DeepLabCut's HeatmapPredictor places them.
        x = self.stride * (torch.arange(width, device=heat.device) + 0.5)
        y = self.stride * (torch.arange(height, device=heat.device) + 0.5)[:, None]
        if self.predictor.location_refinement:
            refined = outputs["locref"].reshape(n, keypoints, 2, height, width)
            x = x + refined[:, :, 0] * self.predictor.locref_std
            y = y + refined[:, :, 1] * self.predictor.locref_std
        across = _apart(x.expand_as(heat), rivals)
        return torch.hypot(across, _apart(y.expand_as(heat), rivals))


def greatest(numbers: Iterable[float]) -> float:
    """Return the largest; what is not a number if there is one."""
    return max(numbers, key=lambda number: (math.isnan(number), number))


def overflowed(numbers: Tensor) -> Tensor:
    """Return which pictures have a number that is infinite or none; (n,), bool."""
    return ~numbers.flatten(1).sum(dim=1, dtype=torch.float32).isfinite()


def noise_of_steps(exact: Tensor, fast: Tensor, counts: Tensor) -> Tensor:
    """Return by how much the steps from the highest number to its rivals differ, at most.

    That is no number, or infinite, if one of them is.

    Args:
        exact: (n, keypoints, cells).
        fast: the same, in fewer bits.
        counts: (n, keypoints), whose steps count.
    """
    top, peak = exact.max(dim=2, keepdim=True)
    rivals = (exact >= top - (1 - LIKE) * top.abs()) & counts[..., None]
    difference = fast - exact
    steps = (difference - difference.gather(2, peak)).abs()
    return torch.where(rivals, steps, 0.0).max()


def typical_step(exact: Tensor, fast: Tensor, cells: Tensor) -> Tensor:
    """Return by how much the step between two cells of a keypoint differs on average.

    That is the root of the mean square of a picture, of the picture where it is largest.

    Args:
        exact: (n, keypoints, cells).
        fast: the same, in fewer bits.
        cells: (n, keypoints, cells), which count.
    """
    difference = fast - exact
    mean = torch.where(cells, difference, 0.0).sum(dim=2) / cells.sum(dim=2).clamp(min=1)
    squares = torch.where(cells, (difference - mean[..., None]).square(), 0.0).sum(dim=(1, 2))
    squares /= cells.sum(dim=(1, 2)).clamp(min=1)
    return (2 * squares).sqrt().max()  # of two cells, that err on their own


def _top(outputs: Named) -> Tensor:
    found: Tensor = outputs["heatmap"].amax(dim=(2, 3))
    return found


def _apart(values: Tensor, chosen: Tensor) -> Tensor:
    high = values.masked_fill(~chosen, -torch.inf).amax(dim=(2, 3))
    return high - values.masked_fill(~chosen, torch.inf).amin(dim=(2, 3))
