"""RTMPose's heads (SimCC): could noise in their outputs put a keypoint elsewhere?

A keypoint's column and its row are each the largest of a line of numbers. So each cell of a line
that comes within the noise of its largest may be the one, whatever the other line says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.precision.watch import (
    TYPICAL,
    HeatmapWatch,
    Named,
    greatest,
    noise_of_steps,
    overflowed,
    typical_step,
)

AXES = ("x", "y")


class SimCCWatch(HeatmapWatch):
    """A watch over lines with one peak a keypoint: cells within the noise of it rival it."""

    def noise(self, exact: Named, fast: Named) -> float:
        """Return by how much the steps from peak to rivals differ, at most.

        That is at least ``TYPICAL`` times the step between two cells of a line: those beside a peak
        err alike, another peak far from it does not.
        """
        counts = self._most_likely(exact, 0.0) >= self.pcutoff
        counts |= ~(self._most_likely(fast, 0.0) < self.pcutoff)
        found = []
        for axis in AXES:
            line, other = exact[axis], fast[axis]
            cells = counts[..., None].expand_as(line)
            found.append(float(noise_of_steps(line, other, counts)))
            found.append(TYPICAL * float(typical_step(line, other, cells)))
        return greatest(found)

    def largest(self, outputs: Named) -> Tensor:
        """Return each picture's largest value of a line."""
        found: Tensor = torch.stack([outputs[axis].abs().amax(dim=(1, 2)) for axis in AXES]).amax(0)
        return found

    def unsure(self, outputs: Named, noise: float | Tensor, spread: float) -> Tensor:
        """Return where the cells that could be the highest are further apart than ``spread``."""
        step = noise[:, None] if isinstance(noise, Tensor) else noise
        spans = []
        for axis in AXES:
            line = outputs[axis]
            rivals = line >= (line.amax(dim=2) - step)[..., None]
            cells = torch.arange(line.shape[2], device=line.device, dtype=line.dtype)
            cells = cells.expand_as(line)
            last = cells.masked_fill(~rivals, -torch.inf).amax(dim=2)
            first = cells.masked_fill(~rivals, torch.inf).amin(dim=2)
            spans.append((last - first) / self.predictor.simcc_split_ratio)
        # What does not compare, because it is not a number, is unsure.
        counts = ~(self._most_likely(outputs, step) < self.pcutoff)
        found: Tensor = (~(torch.hypot(*spans) * self.scale <= spread) & counts).any(dim=1)
        return found | overflowed(outputs[AXES[0]]) | overflowed(outputs[AXES[1]])

    def _most_likely(self, outputs: Named, noise: float | Tensor) -> Tensor:
        """Return how likely keypoints (n, keypoints) could be for such noise."""
        found = []
        for axis, sigma in zip(AXES, self.predictor.sigma, strict=True):
            line = outputs[axis]
            if self.predictor.normalize_outputs:
                line, times = line.clamp(min=0), 1.0
            else:
                times = float(sigma) * self.predictor.decode_beta
            top = line.amax(dim=2)
            if self.predictor.apply_softmax:
                others = ((line - top[..., None]) * times).exp().sum(dim=2)
                step = 2 * times * torch.as_tensor(noise, device=line.device)
                found.append(step.exp() / others)
            else:
                found.append(top * times + times * torch.as_tensor(noise, device=line.device))
        return torch.minimum(*found)
