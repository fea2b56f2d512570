"""Several animals, bottom-up: could noise in a network's outputs change who is found, and where?

DeepLabCut's ``PartAffinityFieldPredictor`` finds the peaks of smoothed heatmaps, gives each two of
them that could be a limb an affinity (what the part affinity field has along the line between
them), joins pairs so that the sum of affinities is largest, and the pairs to animals. All of it is
choosing between numbers. Here each number is an interval as wide as the noise, and a frame is
unsure unless every choice is the same wherever in their intervals the numbers are:

* *Peaks.* A cell is a peak if nothing is higher in the window around it. A peak's rivals are the
  cells of its window that come within the noise. It stays one peak, in one of its rivals, if these
  see each other and are higher than all else that they see. No other cell may be so near to being a
  peak, and no likelihoods so near to each other where only the first few count.
* *Limbs.* A pair's affinity lies between those of all its rivals, or is 0 if a peak is so near to
  the threshold that it may not be one. A pair is joined if it is worth
  more than each exchange of partners with another one. Of what is left, no pair may be good enough.
* *Animals.* What is connected is one animal, in whatever order it is joined, if it has no bodypart
  twice. No two may lie so much upon each other that DeepLabCut drops one, and it has to be clear
  which comes first.
* *Keypoints.* The rivals of a peak put its keypoint in places that are near enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from deeplabcut.pose_estimation_pytorch.models.predictors import PartAffinityFieldPredictor
from torch import Tensor

from worker.precision.watch import LIKE, Named, Watch, greatest

#: As in DeepLabCut: where a limb is sampled, and what affinities are rounded to.
POINTS, DECIMALS = 10, 1000.0
#: More than fp32 errs by in likelihoods and sums of affinities.
ROUNDING = 1e-5
#: Of the noise of heatmaps before their sigmoid, that of affinities: about what bfloat16 makes.
SHARE = 1 / 8


#: Of the noise of affinities, that of their mean over an animal: not all err the same way.
EVEN = 1 / 3
#: Where a larger share of the cells are of peaks, or a frame has more peaks, nothing is clear.
CROWD, MOST_PEAKS = 1 / 8, 5000
#: Nor where there are so many cells for each peak that there could be.
MOST_RIVALS = 4


def hasten(model: Any) -> None:
    """Let the predictors of DeepLabCut's PoseModel find peaks, the same ones, in less time."""
    for head in model.heads.values():
        if type(head.predictor) is PartAffinityFieldPredictor:
            head.predictor.find_local_peak_indices_maxpool_nms = peaks


def peaks(heat: Tensor, radius: int, threshold: float) -> Tensor:
    """Return frame, bodypart, row and column of each cell that none in the window is higher than.

    DeepLabCut looks for the highest around every cell, though few reach the threshold.

    Args:
        heat: (n, bodyparts, rows, columns).
        radius: as DeepLabCut calls the window's size, in cells; odd.
        threshold: above 0; peaks are not lower.

    Returns:
        (peaks, 4), int32, ascending.
    """
    cell = (heat >= threshold).flatten().nonzero()[:, 0]
    if len(cell) > CROWD * heat.numel():
        found: Tensor = PartAffinityFieldPredictor.find_local_peak_indices_maxpool_nms(
            heat, radius, threshold
        )
        return found
    inside, places = _around(heat.shape, cell, radius // 2)
    highest = torch.where(inside, heat.flatten()[places], -math.inf).flatten(1).amax(dim=1)
    cell = cell[heat.flatten()[cell] == highest]
    return torch.stack(torch.unravel_index(cell, heat.shape), dim=1).int()


@dataclass(frozen=True)
class Cells:
    """The cells of a batch that may be the peaks that count, by the slot of their peak.

    Slots are numbered by frame, bodypart and likelihood: (frame * bodyparts + bodypart) * animals +
    rank.
    """

    slot: Tensor
    row: Tensor
    column: Tensor
    """Each (cells,)."""
    sure: Tensor
    """(frames, bodyparts, animals), bool: slots whose peak is there in any case."""


@dataclass(frozen=True)
class Heatmaps:
    """The smoothed likelihoods of a batch, and how far noise may move each of them."""

    heat: Tensor
    """Likelihoods (n, bodyparts, rows, columns)."""
    slope: Tensor
    """By noise a cell goes up or down by its slope times the noise; shaped as ``heat``."""
    steep: Tensor
    """The slopes before they are smoothed."""
    share: Tensor
    """(n,): the noise, and what it does to the slope, which is made of what is noisy."""

    def bound(self, places: Tensor, way: int) -> Tensor:
        """Return the most (``way`` 1) or least (-1) that cells, numbered as when flat, may be."""
        size = math.prod(self.heat.shape[1:])
        step = self.slope.flatten()[places] * self.share[places // size] + ROUNDING
        return self.heat.flatten()[places] + way * step


@dataclass(frozen=True)
class AssembledAnimals:
    """The animals of a batch that are made of two limbs or more."""

    twice: Tensor
    """(frames,), bool: something has a bodypart twice."""
    members: Tensor
    """(frames, animals that a frame has at most, slots of a frame), bool."""
    animal: Tensor
    """Of each limb, which one of all places for animals it is of; (limbs,)."""
    limb: tuple[Tensor, ...]
    """Of each limb its frame, kind, and the ranks of its ends; each (limbs,)."""

    def sums(self, values: Tensor) -> Tensor:
        """Return for each animal the sum of its limbs' values.

        Args:
            values: (frames, kinds of limbs, ranks, ranks).

        Returns:
            (frames, animals).
        """
        n, most, _ = self.members.shape
        found = values.new_zeros(n * most)
        return found.index_add_(0, self.animal, values[self.limb]).view(n, most)


class PafWatch(Watch):
    """A watch over part affinity fields: every choice on the way to the animals has to be clear."""

    again = 0.5  # as of networks that were trained little; well trained ones are to be measured

    def __init__(self, model: Any, name: str, pcutoff: float) -> None:
        """Watch the head ``name`` of ``model``, whose predictor :meth:`knows` knows."""
        super().__init__(model, name, pcutoff)
        assembler = self.predictor.assembler
        self._animals = int(assembler.max_n_individuals)
        self._parts = int(assembler.n_multibodyparts)
        self._edges = [int(edge) for edge in self.predictor.edges_to_keep]
        self._graph = [tuple(self.predictor.graph[edge]) for edge in self._edges]
        self._window = int(self.predictor.nms_radius)
        radius, sight = self._window, self._window // 2
        kernel = self.predictor.make_2d_gaussian_kernel(self.predictor.sigma, 2 * radius + 1)
        #: How a cell of a heatmap goes into what its neighbours are smoothed to; (11,).
        self._line = kernel.sum(dim=0)
        shifted = [
            F.pad(kernel, (sight + right, sight - right, sight + down, sight - down))
            for down in range(-sight, sight + 1)
            for right in range(-sight, sight + 1)
        ]
        #: How cells go into the steps from the middle of a window to its other cells; (25, 225).
        self._steps = (torch.stack(shifted) - F.pad(kernel, (sight,) * 4)).abs().flatten(1)

    @classmethod
    def knows(cls, predictor: Any) -> bool:
        """Tell whether a predictor of this class is set up as those of DeepLabCut's projects."""
        joins = predictor.assembler
        limbs = [frozenset(predictor.graph[edge]) for edge in predictor.edges_to_keep]
        return (
            type(predictor) is PartAffinityFieldPredictor
            and predictor.num_uniquebodyparts == 0
            and joins.n_keypoints == joins.n_multibodyparts
            and joins.max_n_individuals > 1
            and joins.n_multibodyparts > 1
            and predictor.nms_radius % 2 == 1
            and 0 < len(set(limbs)) == len(limbs)
            and all(start < end for start, end in predictor.graph)
            and not (joins.greedy or joins.identity_only or joins.force_fusion)
            and not (joins.add_discarded or joins.window_size or joins.safe_edge)
            and joins._kde is None
            and joins.min_n_links == 2
            and joins.method == "m1"
        )

    def shown(self, predictions: Named) -> Tensor:
        """Return which keypoints pictures show above the cutoff, of whichever animal."""
        found: Tensor = (predictions["poses"][..., 2] >= self.pcutoff).any(dim=1)
        return found

    def noise(self, exact: Named, fast: Named) -> float:
        """Return the least noise that covers the differences near peaks, and of affinities."""
        heat, slope, steep = self._likelihoods(exact)
        difference = self._likelihoods(fast)[0] - heat
        highest = F.max_pool2d(heat, self._window, stride=1, padding=self._window // 2)
        near = (heat >= LIKE * highest) & (heat >= LIKE * self._least)
        found = [_share(difference[near], slope[near])]
        peak = (near & (heat == highest)).flatten().nonzero()[:, 0]
        inside, places = _around(heat.shape, peak, self._window // 2)
        inside &= near.flatten()[places]
        steps = difference.flatten()[places] - difference.flatten()[peak, None, None]
        found.append(_share(steps[inside], self._climbs(steep, peak).view_as(steps)[inside]))
        _, cells = self._peaks(Heatmaps(heat, slope, steep, heat.new_zeros(len(heat))))
        pairs = self._pairs(cells)
        true, other = (self._affinities(some["paf"], cells, pairs) for some in (exact, fast))
        found.append(_share(other - true, torch.full_like(true, SHARE)))
        none = heat.new_zeros(len(heat))
        low, high = self._ranges(exact["paf"], cells, pairs, none)
        assembled = self._assembled(self._joined(low, high)[0])
        changed = assembled.sums(self._ranges(fast["paf"], cells, pairs, none)[0]) - assembled.sums(
            low
        )
        limbs = assembled.sums(torch.ones_like(low))
        found.append(_share(changed[limbs > 0], EVEN * SHARE * limbs[limbs > 0]))
        return greatest(found)

    def largest(self, outputs: Named) -> Tensor:
        """Return each picture's largest of a heatmap or, if it is more, of a field."""
        heat = outputs["heatmap"].abs().flatten(1).amax(dim=1)
        return torch.maximum(heat, outputs["paf"].abs().flatten(1).amax(dim=1) / SHARE)

    def moved(self, exact: Named, fast: Named) -> Tensor:
        """Return how far keypoints are apart; infinitely where others belong together."""
        true, found = exact["poses"].cpu(), fast["poses"].cpu()
        return torch.stack([_moved(*pair, self.pcutoff) for pair in zip(true, found, strict=True)])

    def unsure(self, outputs: Named, noise: float | Tensor, spread: float) -> Tensor:
        """Return where a choice is not clear."""
        heat, slope, steep = self._likelihoods(outputs)
        noise = torch.as_tensor(noise, dtype=heat.dtype, device=heat.device).expand(len(heat))
        unsure, cells = self._peaks(Heatmaps(heat, slope, steep, noise * noise.exp()))
        # What is not a number does not compare, and what overflowed says nothing of its noise.
        unsure |= ~(outputs["heatmap"].flatten(1).sum(dim=1) + noise).isfinite()
        low, high = self._ranges(outputs["paf"], cells, self._pairs(cells), SHARE * noise)
        joined, open_ = self._joined(low, high)
        assembled = self._assembled(joined)
        unsure |= open_ | assembled.twice
        if assembled.members.shape[1]:
            even = ((1 - EVEN) * SHARE * noise)[:, None, None, None] - ROUNDING
            unsure |= _tied(
                assembled.sums(low + even), assembled.sums(high - even), assembled.members
            )
            unsure |= self._misplaced(outputs["locref"], cells, assembled.members, spread)
        return unsure

    # -- peaks --

    @property
    def _least(self) -> float:
        return float(self.predictor.assembler.pcutoff)

    def _likelihoods(self, outputs: Named) -> tuple[Tensor, Tensor, Tensor]:
        """Return likelihoods, smoothed, and how noise moves them: smoothed, and not smoothed."""
        heat = outputs["heatmap"]
        slope = torch.ones_like(heat)
        if self.predictor.apply_sigmoid:
            heat = heat.sigmoid()
            slope = heat * (1 - heat)
        channels, size = 2 * heat.shape[1], 2 * self.predictor.nms_radius + 1
        line = self._line.to(heat)
        both = torch.cat([heat, slope], dim=1)
        # Row by row, then column by column: a tenth of the multiplications.
        across = F.conv2d(both, line.expand(channels, 1, 1, size), padding="same", groups=channels)
        down = line[:, None].expand(channels, 1, size, 1)
        both = F.conv2d(across, down, padding="same", groups=channels)
        return both[:, : heat.shape[1]], both[:, heat.shape[1] :], slope

    def _climbs(self, steep: Tensor, cell: Tensor) -> Tensor:
        """Return how noise moves the steps from each cell to those in its window; (cells, 25)."""
        inside, places = _around(steep.shape, cell, self._window + self._window // 2)
        of_each = torch.where(inside, steep.flatten()[places], 0.0).flatten(1)
        found: Tensor = of_each @ self._steps.to(steep).T
        return found

    def _peaks(self, maps: Heatmaps) -> tuple[Tensor, Cells]:
        """Return which frames' peaks are not clear (n,), and the cells of those that count."""
        n, parts, height, width = maps.heat.shape
        size, animals = parts * height * width, self._animals
        unsure, maybe, cell = self._candidates(maps)
        frame = cell // size
        places, rivals, blurred = self._rivals(maps, cell)
        unsure[frame[blurred]] = True
        whose, *_ = rivals.nonzero(as_tuple=True)
        taken = places[rivals]
        unsure[self._unclear(maps, maybe, taken) // size] = True
        rank = _ranks(maps.heat, cell)
        group = cell // (height * width)
        kept = rank < animals
        least = maps.heat.new_full((n * parts,), math.inf)
        least.scatter_reduce_(0, group[kept], maps.bound(cell[kept], -1), "amin")
        most = torch.where(rivals, maps.bound(places, 1), -math.inf).flatten(1).amax(dim=1)
        unsure[frame[~kept & (most >= least[group])]] = True
        slot = torch.where(kept, group * animals + rank, -1)
        sure = torch.zeros(n * parts * animals, dtype=torch.bool, device=maps.heat.device)
        sure[slot[kept]] = maps.bound(cell[kept], -1) >= self._least
        # Of what is not clear already, nothing more is asked.
        counted = frame[whose][slot[whose] >= 0].bincount(minlength=n)
        unsure |= counted > MOST_RIVALS * parts * animals
        use = (slot[whose] >= 0) & ~unsure[frame[whose]]
        place = taken[use] % (height * width)
        sure = sure.view(n, parts, animals)
        return unsure, Cells(slot[whose][use], place // width, place % width, sure)

    def _candidates(self, maps: Heatmaps) -> tuple[Tensor, Tensor, Tensor]:
        """Return which frames have too many cells (n,), and in the others two sets of cells.

        The cells that may be peaks, and those that are peaks if there is no noise.
        """
        heat, n = maps.heat, len(maps.heat)
        size, sight = math.prod(heat.shape[1:]), self._window // 2
        # Most cells are far below all that counts; where they are not, nothing is clear.
        steepest = 1 / 4 if self.predictor.apply_sigmoid else 1.0
        counts = heat >= (self._least - ROUNDING - steepest * maps.share)[:, None, None, None]
        cell = counts.flatten().nonzero()[:, 0]
        cell = cell[maps.bound(cell, 1) >= self._least]
        unsure = (cell // size).bincount(minlength=n) > CROWD * size
        cell = cell[~unsure[cell // size]]
        around, places = _around(heat.shape, cell, sight)
        floor = torch.where(around, maps.bound(places, -1), -math.inf).flatten(1).amax(dim=1)
        highest = torch.where(around, heat.flatten()[places], -math.inf).flatten(1).amax(dim=1)
        maybe = cell[maps.bound(cell, 1) >= floor]
        cell = cell[heat.flatten()[cell] == highest]
        crowded = (cell // size).bincount(minlength=n) > MOST_PEAKS
        unsure |= crowded
        return unsure, maybe, cell[~crowded[cell // size]]

    def _rivals(self, maps: Heatmaps, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return all cells that the rivals of peaks see, which of them are rivals, and more.

        Returns:
            The cells around each peak and which are its rivals, (peaks, side, side) each; and the
            peaks whose rivals do not see each other, or see other cells that are as high; (peaks,).
        """
        heat, sight = maps.heat, self._window // 2
        around, places = _around(heat.shape, cell, 2 * sight)
        near = around & (maps.bound(places, 1) >= maps.bound(cell, -1)[:, None, None])
        middle = (slice(None), slice(sight, -sight), slice(sight, -sight))
        down = heat.flatten()[cell][:, None, None] - heat.flatten()[places[middle]]
        climb = self._climb(maps, cell)
        rivals = torch.zeros_like(near)
        rivals[middle] = around[middle] & (down <= climb.view_as(down))
        near[middle] = False
        seen = F.max_pool2d(rivals.float()[:, None], self._window, stride=1, padding=sight)[:, 0]
        blurred = (near & (seen > 0)).flatten(1).any(dim=1)
        for axis in (1, 2):
            taken = rivals.any(dim=axis).float()
            blurred |= 4 * sight - taken.flip(1).argmax(dim=1) - taken.argmax(dim=1) > sight
        return places, rivals, blurred

    def _unclear(self, maps: Heatmaps, maybe: Tensor, taken: Tensor) -> Tensor:
        """Return cells that may be peaks and rival none, and cells that rival two peaks.

        Args:
            maps: of the batch.
            maybe: cells that may be peaks.
            taken: the rivals of all peaks.
        """
        heat = maps.heat
        lone = maybe[~torch.isin(maybe, taken)]
        inside, those = _around(heat.shape, lone, self._window // 2)
        up = (
            torch.where(inside, heat.flatten()[those], -math.inf) - heat.flatten()[lone, None, None]
        )
        lone = lone[~(up.flatten(1) > self._climb(maps, lone)).any(dim=1)]
        ascending = taken.sort().values
        twice = ascending[1:][ascending[1:] == ascending[:-1]]
        return torch.cat([lone, twice])

    def _climb(self, maps: Heatmaps, cell: Tensor) -> Tensor:
        """Return how far noise may move the steps from each cell to its window; (cells, 25)."""
        frame = cell // math.prod(maps.heat.shape[1:])
        return maps.share[frame][:, None] * self._climbs(maps.steep, cell) + ROUNDING

    # -- limbs --

    def _pairs(self, cells: Cells) -> tuple[Tensor, Tensor, Tensor]:
        """Return limbs that there may be: which of ``_graph`` (pairs,), from and to which cell."""
        n, parts, animals = cells.sure.shape
        device = cells.slot.device
        owner = cells.slot // animals
        order = owner.argsort(stable=True)
        owner = owner[order]
        bounds = torch.arange(n * parts + 1, device=device)
        starts = torch.searchsorted(owner, bounds).view(-1)
        count = (starts[1:] - starts[:-1]).view(n, parts)
        first = starts[:-1].view(n, parts)
        graph = torch.tensor(self._graph, device=device).reshape(-1, 2)
        sizes = count[:, graph[:, 0]] * count[:, graph[:, 1]]
        which = torch.repeat_interleave(sizes.flatten())
        within = torch.arange(len(which), device=device)
        within = within - (sizes.flatten().cumsum(0) - sizes.flatten())[which]
        frame, limb = which // max(1, len(graph)), which % max(1, len(graph))
        start, end = graph[limb].T
        across = count[frame, end]
        source = order[first[frame, start] + within // across]
        target = order[first[frame, end] + within % across]
        return limb, source, target

    def _affinities(
        self, paf: Tensor, cells: Cells, pairs: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Return the affinity of each pair, not rounded; by the same steps as DeepLabCut."""
        limb, source, target = pairs
        _, parts, animals = cells.sure.shape
        height, width = paf.shape[2:]
        places = torch.stack([cells.row, cells.column], dim=1).float()
        start, end = places[source], places[target]
        length = torch.norm(end - start, dim=1) + 2**-23
        share = torch.linspace(0, 1, POINTS, device=paf.device)[None, :, None]
        line = (start[:, None] + share * (end - start)[:, None]).long()
        row, column = line[..., 0], line[..., 1]
        edge = torch.tensor(self._edges, device=paf.device)[limb]
        frame = cells.slot[source] // (parts * animals)
        base = (frame * (paf.shape[1] // 2) + edge) * 2 * height * width
        at = base[:, None] + row * width + column
        flat = paf.reshape(-1)
        field = torch.stack([flat[at], flat[at + height * width]], dim=2)
        whole = torch.trapz(field, line.float().flip(2), dim=1)
        found: Tensor = torch.norm(whole, dim=1) / length
        return found

    def _ranges(
        self, paf: Tensor, cells: Cells, pairs: tuple[Tensor, Tensor, Tensor], noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return least and largest affinity of each pair of slots, (n, limbs, animals, animals).

        Where there is no peak, both are 0: nothing is to be had there, and for sure.
        """
        n, parts, animals = cells.sure.shape
        limb, source, target = pairs
        found = self._affinities(paf, cells, pairs)
        start, end = cells.slot[source], cells.slot[target]
        own = noise[start // (parts * animals)]
        place = start // (parts * animals) * len(self._graph) + limb
        place = (place * animals + start % animals) * animals + end % animals
        size = n * len(self._graph) * animals * animals
        low, high = found.new_full((size,), math.inf), found.new_zeros(size)
        # A peak that is not there is joined like one of no affinity to any.
        sure = cells.sure.flatten()
        least = torch.where(sure[start] & sure[end], found - own, 0.0)
        low.scatter_reduce_(0, place, _rounded(least.clamp(min=0)).nan_to_num(0.0), "amin")
        high.scatter_reduce_(0, place, _rounded(found + own).nan_to_num(math.inf), "amax")
        low[low.isinf()] = 0
        shape = (n, len(self._graph), animals, animals)
        return low.view(shape), high.view(shape)

    def _joined(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return which pairs are joined for sure, and which frames have others that may be.

        Args:
            low: least affinities (n, limbs, animals, animals).
            high: largest.

        Returns:
            (n, limbs, animals, animals), bool; and (n,), bool.
        """
        least = float(self.predictor.assembler.min_affinity)
        joined = low >= least + ROUNDING
        frame, limb, source, target = joined.nonzero(as_tuple=True)
        own, most = low[frame, limb], high[frame, limb]
        pair = torch.arange(len(frame), device=low.device)
        # Partners exchanged with a pair (other, partner), which loses its own.
        gain = most[pair, source][:, None, :] + most[pair, :, target][:, :, None] - own
        gain[pair, source] = -math.inf
        gain[pair, :, target] = -math.inf
        wins = low[frame, limb, source, target] > gain.flatten(1).amax(dim=1) + ROUNDING
        joined[frame, limb, source, target] = wins
        left = ~joined.any(dim=3, keepdim=True) & ~joined.any(dim=2, keepdim=True)
        open_ = left & (high >= least - ROUNDING)
        return joined, open_.flatten(1).any(dim=1)

    # -- animals --

    def _assembled(self, joined: Tensor) -> AssembledAnimals:
        """Return the animals that limbs (n, limbs, animals, animals) make, if these are joined."""
        n, animals, parts = len(joined), self._animals, self._parts
        nodes = parts * animals
        frame, limb, source, target = joined.nonzero(as_tuple=True)
        graph = torch.tensor(self._graph, device=joined.device).reshape(-1, 2)
        start = graph[limb, 0] * animals + source
        end = graph[limb, 1] * animals + target
        near = torch.zeros((n, nodes, nodes), device=joined.device)
        near[frame, start, end] = near[frame, end, start] = 1
        linked = near.any(dim=2)
        near += torch.eye(nodes, device=joined.device)
        for _ in range(max(1, math.ceil(math.log2(nodes)))):
            wider = (near @ near).clamp(max=1)
            if bool((wider == near).all()):
                break
            near = wider
        # Of each animal, the row of its first node: (n, nodes, nodes), a row an animal or nothing.
        index = torch.arange(nodes, device=joined.device)
        first = near.argmax(dim=2) == index
        of_limb = torch.zeros((n, nodes), device=joined.device)
        of_limb.index_put_((frame, start), near.new_ones(len(frame)), accumulate=True)
        links = (near @ of_limb[..., None])[..., 0]
        twice = near.view(n, nodes, parts, animals).sum(dim=3) > 1
        seen = first & (links >= 2)
        # The animals of each frame, side by side.
        most = int(seen.sum(dim=1).max()) if n else 0
        rank = seen.long().cumsum(dim=1) - 1
        which, row = seen.nonzero(as_tuple=True)
        members = torch.zeros((n, most, nodes), dtype=torch.bool, device=near.device)
        members[which, rank[which, row]] = near[which, row] > 0
        owner = near.argmax(dim=2)[frame, start]
        counts = seen[frame, owner]
        return AssembledAnimals(
            (twice.any(dim=2) & linked).any(dim=1),
            members,
            (frame * most + rank[frame, owner])[counts],
            tuple(one[counts] for one in (frame, limb, source, target)),
        )

    def _misplaced(self, locref: Tensor, cells: Cells, members: Tensor, spread: float) -> Tensor:
        """Return where a keypoint is not clear, or two animals nearly cover each other; (n,)."""
        n, parts, animals = cells.sure.shape
        height, width = locref.shape[2:]
        part = cells.slot // animals  # of its frame
        at = part * 2 * height * width + cells.row * width + cells.column
        flat, scale = locref.reshape(-1), self.predictor.locref_stdev
        x = self.stride * cells.column + scale * flat[at]
        y = self.stride * cells.row + scale * flat[at + height * width]
        spans = [_range(values, cells.slot, n * parts * animals) for values in (x, y)]
        (left, right), (top, bottom) = ([one.view(n, -1) for one in span] for span in spans)
        used = members.any(dim=1)
        far = ~(torch.hypot(right - left, bottom - top) <= spread)
        unsure = (far & used).any(dim=1)
        if members.shape[1] < 2:
            return unsure
        inside = torch.ones((*members.shape[:2], *members.shape[1:]), dtype=torch.bool)
        inside = inside.to(members.device)
        for low, high in ((left - spread, right + spread), (top - spread, bottom + spread)):
            start = low[:, None].masked_fill(~members, math.inf).amin(dim=2)
            end = high[:, None].masked_fill(~members, -math.inf).amax(dim=2)
            start = torch.maximum(start[:, :, None], start[:, None])[..., None]
            end = torch.minimum(end[:, :, None], end[:, None])[..., None]
            inside &= (high[:, None, None] >= start) & (low[:, None, None] <= end)
        # Of each first one's keypoints, those that are in what it has in common with the second.
        common = (inside & members[:, :, None]).sum(dim=3)
        share = common / members.sum(dim=2).clamp(min=1)[:, :, None]
        share = torch.minimum(share, share.transpose(1, 2))
        pairs = torch.ones(share.shape[1:], device=share.device).triu(diagonal=1).bool()
        covered = (share >= self.predictor.assembler.max_overlap - ROUNDING) & pairs
        unsure |= covered.flatten(1).any(dim=1)
        return unsure


def _around(shape: torch.Size, cell: Tensor, sight: int) -> tuple[Tensor, Tensor]:
    """Return the square around each cell of maps: what of it is in the map, and which cells it is.

    Args:
        shape: of the maps: n, bodyparts, rows, columns.
        cell: (cells,), places in the maps when flat.
        sight: cells from the middle to an edge.

    Returns:
        Both (cells, 2 * sight + 1, 2 * sight + 1).
    """
    height, width = shape[2:]
    step = torch.arange(-sight, sight + 1, device=cell.device)
    row = (cell // width % height)[:, None] + step
    column = (cell % width)[:, None] + step
    inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None]
    places = cell[:, None, None] + step[:, None] * width + step
    return inside, places.clamp(0, max(0, shape.numel() - 1))


def _ranks(heat: Tensor, cell: Tensor) -> Tensor:
    """Return the place of each peak among those of its map, the most likely one 0; (cells,)."""
    group = cell // (heat.shape[2] * heat.shape[3])
    order = heat.flatten()[cell].argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=heat.device)
    return rank - torch.searchsorted(group[order], group)


def _share(difference: Tensor, slope: Tensor) -> float:
    """Return the least noise by which so much may change, where there is that slope."""
    over = (difference.abs() - ROUNDING).clamp(min=0) / slope.clamp(min=1e-9)
    return float(over.max()) if len(over) else 0.0


def _rounded(affinities: Tensor) -> Tensor:
    return torch.round(affinities * DECIMALS) / DECIMALS


def _range(values: Tensor, slot: Tensor, size: int) -> tuple[Tensor, Tensor]:
    low, high = values.new_full((size,), math.inf), values.new_full((size,), -math.inf)
    low.scatter_reduce_(0, slot, values, "amin")
    high.scatter_reduce_(0, slot, values, "amax")
    return low, high


def _tied(low: Tensor, high: Tensor, members: Tensor) -> Tensor:
    """Return in which frames two animals, of whom there are members, could change places; (n,)."""
    there = members.any(dim=2)
    both = (there[:, :, None] & there[:, None]).triu(diagonal=1)
    close = (low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])
    return (both & close).flatten(1).any(dim=1)


def _moved(true: Tensor, found: Tensor, pcutoff: float) -> Tensor:
    """Return how far the keypoints of a frame's animals are from where they are in truth, pixels.

    Args:
        true: (animals, bodyparts, at least x, y and likelihood), -1 where there is no animal, and
            not a number where it has no such bodypart.
        found: as ``true``; animals in the same order.
        pcutoff: keypoints that are less likely in truth count but by whose they are.
    """
    known, also = true[..., 2] >= 0, found[..., 2] >= 0
    if not torch.equal(known, also):
        return torch.tensor(math.inf)
    distance = (true[..., :2] - found[..., :2]).norm(dim=-1)
    return torch.where(true[..., 2] >= pcutoff, distance, 0.0).max()
