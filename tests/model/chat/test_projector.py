"""The projector's identity, its reach over the windows' borders, and its size."""

import pytest
import torch

from tap_engine.model.chat.config import ProjectorConfig
from tap_engine.model.chat.projector import ImageProjector
from tap_engine.schemas.errors import ConfigError


def small(**switches: str) -> ImageProjector:
    torch.manual_seed(0)
    return ImageProjector(ProjectorConfig(**switches), channels=8, width=12)


@pytest.mark.parametrize("merge", ["concat", "avgpool"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_at_first_only_merge_and_mlp_do_anything(block: str, merge: str) -> None:
    projector = small(block=block, merge=merge)
    features = torch.randn(2, 8, 64, 64)
    tokens = projector(features)
    assert tokens.shape == (2, 1024, 12), "1,024 tokens of a picture of 1,024 px"
    assert torch.equal(tokens, projector.mlp(projector.merge(features)))
    tokens.square().sum().backward()
    for one in projector.blocks:
        assert one.norms[-1].weight.grad.abs().min() > 0, "the first update leaves the identity"


@pytest.mark.parametrize("merge", ["concat", "avgpool"])
def test_tokens_are_the_two_by_two_neighbours_row_by_row(merge: str) -> None:
    features = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    merged = small(merge=merge).merge(features)
    assert merged.shape[1] == 6
    # Token 4 is in row 1, column 1: rows 2 and 3, columns 2 and 3.
    cells = features[0, :, 2:4, 2:4]
    want = cells.flatten() if merge == "concat" else cells.mean((1, 2))
    assert torch.equal(merged[0, 4].sort().values, want.sort().values)


def test_information_crosses_the_windows_as_far_as_six_convolutions_reach() -> None:
    """Place (15, 15) is the corner of the first of 4x4 windows."""
    projector = small()

    def reached() -> list[tuple[int, int]]:
        features = torch.randn(1, 8, 64, 64, generator=torch.Generator().manual_seed(1))
        other = features.clone()
        other[0, :, 15, 15] += 1
        changed = (projector(features) != projector(other))[0].any(-1).view(32, 32)
        return [(int(y), int(x)) for y, x in changed.nonzero()]

    assert reached() == [(7, 7)]
    with torch.no_grad():
        for block in projector.blocks:
            block.norms[-1].weight.fill_(0.5)
    assert reached() == [(y, x) for y in range(4, 11) for x in range(4, 11)]


@pytest.mark.parametrize(
    ("channels", "switches", "millions"),
    [
        (256, {}, 3.54 + 9.18),
        (256, {"block": "bottleneck"}, 0.64 + 9.18),
        (1024, {"source": "last_block"}, 56.6 + 17.0),
        (1024, {"source": "last_block", "block": "bottleneck"}, 10.2 + 17.0),
    ],
)
def test_sizes_are_the_specification_s(channels: int, switches: dict, millions: float) -> None:
    with torch.device("meta"):
        projector = ImageProjector(ProjectorConfig(**switches), channels, 2560)
    count = sum(value.numel() for value in projector.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.1)
    if not switches:
        assert count == 12_722_176


def test_unknown_switches_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"projector.merge must be concat or avgpool, got 'x'"):
        ProjectorConfig(merge="x")
