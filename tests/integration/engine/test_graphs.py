"""gpu.graphs on a pretended device: a recording changes the speed of a network, nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.pretended_gpu import Device
from worker.gpu.graphs import PROOFS, SEEN, WARM_UPS, Graphs, Outputs, recorder_of


class Network(nn.Module):
    """Two convolutions and a head; ``odd`` is what no recording can know of."""

    def __init__(self, odd: str = "") -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
        self.odd = odd
        self.calls = 0
        self.seen: dict[str, Tensor] = {}
        self.layers[0].register_forward_hook(lambda *told: self.seen.update(first=told[2]))

    def forward(self, x: Tensor) -> Outputs:
        self.calls += 1
        heat = self.layers(x) + self.seen["first"].mean()
        if self.odd == "looks at values" and bool(heat.max() > 0):
            heat = heat * 2
        if self.odd == "counts" and self.calls > SEEN + WARM_UPS + 2:
            heat = heat + 1
        if self.odd == "differs" and self.calls > SEEN + WARM_UPS + 2:
            heat = heat + self.calls
        if self.odd == "gives nan":
            heat = heat / 0 * 0
        return {"bodypart": {"heatmap": heat, "locref": heat.flip(3)}, "unique": {"heatmap": -heat}}


def pictures(number: int, count: int = 4, side: int = 8) -> Tensor:
    made = torch.randn((count, side, side, 3), generator=torch.Generator().manual_seed(number))
    return made.permute(0, 3, 1, 2)


def through(graphs: Graphs, network: Network, batches: list[Tensor]) -> list[Outputs]:
    with torch.inference_mode():
        return [graphs.run(network, batch) for batch in batches]


def assert_same(found: list[Outputs], odd: str, batches: list[Tensor]) -> None:
    """Look when all have come: no batch's outputs are another's memory."""
    network = Network(odd)
    for ours, batch in zip(found, batches, strict=True):
        for head, named in network(batch).items():
            for name, value in named.items():
                assert torch.equal(ours[head][name].nan_to_num(7), value.nan_to_num(7))


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    init = Network.__init__

    def same(self: Network, odd: str = "") -> None:
        torch.manual_seed(0)
        init(self, odd)

    monkeypatch.setattr(Network, "__init__", same)


@pytest.mark.parametrize("odd", ["", "gives nan"])
def test_batches_of_a_film_are_replayed(odd: str) -> None:
    """The network's own code runs until it is recorded and proven; from then on never again."""
    device, network = Device(), Network(odd)
    batches = [pictures(number) for number in range(SEEN + 8)]
    graphs = Graphs(device)
    assert_same(through(graphs, network, batches), odd, batches)
    assert device.recorded == [(4, 2, 8, 8)]
    assert device.replays == 8
    assert network.calls == SEEN + WARM_UPS + 1 + PROOFS
    assert graphs.summary() == {"replays": 8, "why_not": ""}
    assert graphs.bytes > 0


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ("looks at values", "not permitted when stream is capturing"),
        ("counts", "a recording finds something else"),
        ("differs", "the network itself finds something else each time"),
    ],
)
def test_what_can_not_be_recorded_goes_on_as_it_is(odd: str, why: str) -> None:
    """Whether the recording fails, or finds what the network would not: never a wrong output.

    It is not tried once more for each film, where memory is short between them.
    """
    device, network = Device(), Network(odd)
    batches = [pictures(number) for number in range(SEEN + 4)]
    graphs = Graphs(device)
    found = through(graphs, network, batches)
    assert why in graphs.summary()["why_not"]
    assert graphs.bytes == 0
    assert device.held == 0
    graphs.clear()
    tried, network.calls = list(device.recorded), 0
    through(graphs, network, batches)
    assert (device.recorded, network.calls) == (tried, len(batches))
    if odd not in {"counts", "differs"}:  # nobody could say what it should be
        assert_same(found, odd, batches)


def test_forms_and_shapes_have_recordings_of_their_own() -> None:
    """One a form; a new shape's takes the place of the last one's, whose memory is free before."""
    device, exact, fast = Device(), Network(), Network()
    sizes = [{}, {"count": 2}, {"side": 16}, {}]
    graphs = Graphs(device)
    with torch.inference_mode():
        for size in sizes:
            for number in range(SEEN + 2):
                batch = pictures(number, **size)
                for network in (exact, fast):
                    assert_same([graphs.run(network, batch)], "", [batch])
    shapes = [(4, 2, 8, 8), (2, 2, 8, 8), (4, 2, 16, 16), (4, 2, 8, 8)]
    assert device.recorded == [shape for shape in shapes for _ in range(2)]
    assert device.held == device.most_held == 2
    graphs.keep([fast])
    assert device.held == 1
    graphs.clear()
    assert (device.held, graphs.bytes) == (0, 0)


def test_a_batch_of_another_shape_in_between_is_no_reason_to_record() -> None:
    """A film's last batch is smaller; the next film goes on with the recording."""
    device, network = Device(), Network()
    graphs = Graphs(device)
    film = [*(pictures(number) for number in range(SEEN + 3)), pictures(9, count=3)]
    assert_same(through(graphs, network, film + film), "", film + film)
    assert device.recorded == [(4, 2, 8, 8)]
    assert device.replays == 3 + SEEN + 3


def test_a_device_that_never_waits_needs_no_recording() -> None:
    """It would hold memory, and make nothing faster."""
    device, network = Device(), Network()
    device.waits = False
    graphs = Graphs(device)
    batches = [pictures(number) for number in range(SEEN + 6)]
    assert_same(through(graphs, network, batches), "", batches)
    assert (device.recorded, device.replays, graphs.bytes) == ([], 0, 0)
    assert network.calls == len(batches)


def test_a_device_without_room_for_a_recording_computes_all_the_same() -> None:
    """Memory that lacks for it is no reason for smaller batches."""
    device, network = Device(), Network()
    device.room = 0
    graphs = Graphs(device)
    batches = [pictures(number) for number in range(SEEN + 2)]
    assert_same(through(graphs, network, batches), "", batches)
    assert "no room" in graphs.summary()["why_not"]
    assert (device.replays, device.held) == (0, 0)


def test_where_nothing_records_the_network_is_called() -> None:
    """On a CPU, once a batch."""
    network = Network()
    graphs = Graphs(recorder_of(torch.device("cpu")))
    batches: list[Any] = [pictures(1), pictures(2)]
    assert_same(through(graphs, network, batches), "", batches)
    assert network.calls == 2
    assert graphs.summary() == {"replays": 0, "why_not": ""}
