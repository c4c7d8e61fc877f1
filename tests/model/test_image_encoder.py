import cv2
import pytest
import torch
from torch import nn

from tap_engine.model.config import VitConfig
from tap_engine.model.image_encoder import (
    VitEncoder,
    partition,
    relative_index,
    resize_positions,
    unpartition,
)


def encoder(**settings) -> VitEncoder:
    torch.manual_seed(0)
    config = VitConfig(depth=4, embed_dim=24, num_heads=2, window_size=2, **settings)
    return VitEncoder(config, image_size=64, out_dim=16)


def test_windows_are_row_major_and_come_back() -> None:
    grid = torch.arange(2 * 4 * 6).view(2, 4, 6, 1)
    windows = partition(grid, 2)
    assert windows.shape == (12, 4, 1)
    assert windows[0].flatten().tolist() == [0, 1, 6, 7]
    assert windows[1].flatten().tolist() == [2, 3, 8, 9]
    assert windows[6].flatten().tolist() == [24, 25, 30, 31]
    assert torch.equal(unpartition(windows, 2, (4, 6)), grid)


def test_relative_index_by_its_formula() -> None:
    index = relative_index(3)
    for query in range(9):
        for key in range(9):
            dy, dx = query // 3 - key // 3, query % 3 - key % 3
            assert index[query, key] == (dy + 2) * 5 + dx + 2


def test_nothing_crosses_windows_but_the_convolutions() -> None:
    model = encoder().eval()
    model.cross_conv = nn.ModuleList(nn.Identity() for _ in range(4))
    model.neck = nn.Identity()
    a = torch.randn(1, 3, 64, 64)
    b = a.clone()
    b[..., 32:, 32:] += 1  # the last of four windows
    changed = (model(a) != model(b)).any(1)[0]
    assert changed[2:, 2:].all()
    assert not changed[:2].any() and not changed[:, :2].any()


def test_bottlenecks_start_as_the_identity() -> None:
    conv = encoder().train().cross_conv[0]
    x = torch.randn(2, 24, 4, 4)
    torch.testing.assert_close(conv(x), x)


def test_drop_path_rises_linearly_and_draws_by_window_and_branch(monkeypatch) -> None:
    model = encoder(drop_path=0.3).train()
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    rows = []
    forward = type(model.blocks[0].drop_path).forward

    def count(self, x):
        rows.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(type(model.blocks[0].drop_path), "forward", count)
    model(torch.randn(2, 3, 64, 64))
    assert rows == [2 * 4] * 2 * 4  # windows of two images, two branches, four blocks


def test_activation_checkpointing_changes_nothing() -> None:
    model = encoder(drop_path=0.5).train()
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for enabled in (False, True):
        model.activation_checkpointing = enabled
        model.zero_grad()
        torch.manual_seed(1)  # the same windows are dropped, also when computed twice
        model(images).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("side", [7, 16, 40])
def test_position_resizing_is_opencvs_bicubic(side) -> None:
    table = torch.randn(14 * 14, 3)
    expected = cv2.resize(
        table.view(14, 14, 3).numpy(), (side, side), interpolation=cv2.INTER_CUBIC
    )
    found = resize_positions(table, side)
    torch.testing.assert_close(found, torch.from_numpy(expected).flatten(0, 1), atol=2e-5, rtol=0)
