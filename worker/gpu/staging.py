"""Pictures to the device: planes become pixels there.

An accelerator is sent a frame's planes, half the bytes of its pixels (a third, of a gray film), and
makes BGR of them by the tables of :mod:`worker.video.planes`: the same bits as libswscale's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.gpu.streams import Upload, device_of
from worker.video.planes import Colours, Layout, Planes, tables_of

Frame = npt.NDArray[np.uint8]
AnyFrame = Frame | Planes

#: Pixels that are looked up together: each takes some 30 bytes meanwhile.
CHUNK = 2**22


def pixels(images: Sequence[AnyFrame], upload: Upload) -> Tensor:
    """Return pictures as pixels on the device.

    Args:
        images: BGR (height, width, 3), or planes; all are of the same size as they are shown.
        upload: brings bytes to the device.

    Returns:
        uint8 (n, height, width, 3), BGR; of use until ``upload`` has brought some more.
    """
    planes = [image for image in images if isinstance(image, Planes)]
    arrays = [image for image in images if not isinstance(image, Planes)]
    if not planes:
        return upload(arrays)
    layout = planes[0].layout
    if arrays or any(one.layout != layout for one in planes):  # a film that changes on the way
        return torch.cat([pixels([image], upload).clone() for image in images])
    sizes = _sizes(layout)

    def fill(room: Frame) -> None:
        for row, image in zip(room, planes, strict=True):
            at = 0
            for (height, width), part in zip(sizes, image.parts, strict=True):
                place = row[at : at + height * width].reshape(height, width)
                np.copyto(place[: part.shape[0], : part.shape[1]], part)
                at += height * width

    size = sum(height * width for height, width in sizes)
    return _shown(upload.filled((len(planes), size), fill), layout)


def bgr(planes: Planes, device: torch.device) -> Tensor:
    """Return a frame as it is shown, on the device: uint8 (height, width, 3), BGR."""
    return pixels([planes], Upload(device, device_of(device)))[0]


def _sizes(layout: Layout) -> list[tuple[int, int]]:
    """Return how large planes are as they are sent: Y with an even number of rows and columns."""
    if layout.colours.format == "gray":
        return [(layout.height, layout.width)]
    height, width = -(-layout.height // 2), -(-layout.width // 2)
    return [(2 * height, 2 * width), (height, width), (height, width)]


def _shown(packed: Tensor, layout: Layout) -> Tensor:
    """Return pictures as they are shown, (n, height, width, 3), from what was sent, (n, bytes)."""
    tables = _tables_on(layout.colours, str(packed.device))
    (height, width), *others = _sizes(layout)
    found = torch.empty((len(packed), height, width, 3), dtype=torch.uint8, device=packed.device)
    rows = max(1, CHUNK // (height * width))
    for some, target in zip(torch.split(packed, rows), torch.split(found, rows), strict=True):
        _look_up(tables, some, target, others)
    kept = found[:, layout.top : layout.height, layout.left : layout.width]
    return torch.rot90(kept, -layout.turns, (1, 2)).contiguous()


def _look_up(
    tables: Sequence[Tensor], packed: Tensor, target: Tensor, others: list[tuple[int, int]]
) -> None:
    n, height, width, _ = target.shape
    if not others:
        luma = packed.reshape(n, height, width).long()
        for colour, table in enumerate(tables):
            target[..., colour] = table[luma]
        return
    size = others[0]
    luma, us, vs = (
        part.long()
        for part in torch.split(packed, [height * width, *(h * w for h, w in others)], 1)
    )
    luma = luma.reshape(n, size[0], 2, size[1], 2)
    us, vs = (plane.reshape(n, size[0], 1, size[1], 1) for plane in (us, vs))
    target = target.view(n, size[0], 2, size[1], 2, 3)
    blue, green, red = tables
    target[..., 0] = blue[luma * 256 + us]
    target[..., 1] = green[luma * 65536 + (us * 256 + vs)]
    target[..., 2] = red[luma * 256 + vs]


@lru_cache(maxsize=4)
def _tables_on(colours: Colours, device: str) -> tuple[Tensor, ...]:
    tables = tables_of(colours)
    assert tables is not None  # noqa: S101  # there are planes of such colours
    return tuple(torch.from_numpy(table.reshape(-1)).to(device) for table in tables)


def normalised(pixels: Tensor) -> Tensor:
    """Return pixels (n, height, width, 3), BGR, uint8, as RGB (n, 3, height, width) for a network.

    It is albumentations' ``Normalize`` with ImageNet's mean and deviation, which DeepLabCut uses.
    """
    # The channels stay last in memory, where convolutions want them.
    if pixels.device.type == "cpu":
        # A byte has but 256 outcomes, the same bits as by arithmetic.
        table = _normalised(torch.arange(256)[:, None])[:, None].numpy()
        found = torch.empty(pixels.shape)
        for frame, target in zip(pixels, found, strict=True):
            rgb = cv2.cvtColor(frame.numpy(), cv2.COLOR_BGR2RGB)
            cv2.LUT(rgb, table, target.numpy())
        return found.permute(0, 3, 1, 2)
    return _normalised(pixels.flip(3)).permute(0, 3, 1, 2)


def _normalised(rgb: Tensor) -> Tensor:
    mean, scale = _imagenet_on(str(rgb.device))
    return rgb.float().sub(mean).mul_(scale)


@lru_cache(maxsize=8)
def _imagenet_on(device: str) -> tuple[Tensor, Tensor]:
    # Once: what is sent from memory that is not pinned waits for all that the card was told before.
    mean = torch.tensor([0.485, 0.456, 0.406], device=device) * 255
    deviation = torch.tensor([0.229, 0.224, 0.225], device=device) * 255
    return mean, 1 / deviation
