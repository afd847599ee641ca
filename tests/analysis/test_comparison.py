"""Backbones are looked at block by block, whatever their architecture, and are compared on the same images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aiseeme_models.analysis.cka import unbiased_hsic
from aiseeme_models.analysis.comparison import BATCH, BlockLikeness, compare_backbones, paired_blocks, whole_batches
from aiseeme_models.analysis.rank import rankme
from aiseeme_models.analysis.svcca import svcca
from aiseeme_models.backbones import Backbone, backbones, build_backbone, initialise
from aiseeme_models.downstream.features import recalibrate_batch_norm
from aiseeme_models.errors import InputError
from aiseeme_models.seeding import generator
from tests.conftest import TinyBackbone

BLOCKS = ["stem", "layer1", "layer2", "layer3", "layer4"]


class Pictures:
    """Blobs and stripes of random phase, as decoded images."""

    def __init__(self, count: int = 2 * BATCH, size: int = 32) -> None:
        random = generator(4, "pictures")
        phase, axis = torch.rand((count, 3, 1, 1), generator=random), torch.linspace(0, 1, size)
        wave = torch.sin(20 * (axis.view(1, 1, 1, -1) * phase + axis.view(1, 1, -1, 1) * phase.flip(1)))
        self.pixels = ((wave + 1) * 127).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        return self.pixels[indices]


def plain(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 127.5 - 1


def backbone(name: str = "resnet-tiny", seed: int = 0, norm: str = "group", channels: int = 3) -> Backbone:
    made = build_backbone(name, norm=norm, in_channels=channels)
    initialise(made, generator(seed))
    return made


def compare(first: Backbone, second: Backbone, count: int = 2 * BATCH):
    return compare_backbones(first, second, Pictures(), plain, count=count, device="cpu")


@pytest.mark.parametrize("name", list(backbones))
def test_the_last_block_s_features_are_the_backbone_s(name: str) -> None:
    made = backbone(name).eval()
    images = plain(Pictures(2).pixels)
    blocks = made.forward_blocks(images)
    assert tuple(blocks) == made.blocks
    torch.testing.assert_close(list(blocks.values())[-1], made(images))
    assert all(features.shape[0] == 2 and features.dim() == 2 for features in blocks.values())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_s_blocks_are_what_hooks_on_its_layers_see(name: str) -> None:
    made, seen = backbone(name).eval(), {}
    layers = {"stem": made.get_submodule("maxpool"), **{name: made.get_submodule(name) for name in BLOCKS[1:]}}
    for block, layer in layers.items():
        layer.register_forward_hook(lambda module, given, out, block=block: seen.update({block: out.mean(dim=(2, 3))}))
    images = plain(Pictures(2).pixels)
    made(images)
    blocks = made.forward_blocks(images)
    assert list(blocks) == BLOCKS
    for block in BLOCKS:
        torch.testing.assert_close(blocks[block], seen[block])


def test_a_backbone_is_like_itself_in_every_block() -> None:
    rows = compare(backbone(), backbone())
    assert len(rows) == len(BLOCKS)
    for row in rows:
        assert row.cka == pytest.approx(1, abs=1e-9) and row.svcca == pytest.approx(1, abs=1e-9)
        assert row.ranks[0] == row.ranks[1] > 1


def test_figures_are_those_of_the_pooled_features() -> None:
    first, second = backbone(seed=1), backbone("resnet-small", seed=2)
    assert paired_blocks(first, second) == [(name, name) for name in BLOCKS]
    rows = compare(first, second)
    with torch.inference_mode():
        x, y = (made.eval()(plain(Pictures().pixels)) for made in (first, second))
    last = rows[-1]
    sums = [
        sum(unbiased_hsic(*pair) for pair in zip(a.split(BATCH), b.split(BATCH), strict=True))
        for a, b in ((x, y), (x, x), (y, y))
    ]
    assert last.cka == pytest.approx(sums[0] / (sums[1] * sums[2]) ** 0.5, abs=1e-5)
    assert last.svcca == pytest.approx(svcca(x, y), abs=1e-4)
    assert last.ranks == pytest.approx((rankme(x), rankme(y)), rel=1e-4)
    assert all(-1 <= row.cka < 0.9999 for row in rows)


@pytest.mark.parametrize("norm", ["group", "batch-local"])
def test_only_the_images_that_were_asked_for_count(norm: str) -> None:
    def rows(pictures: Pictures) -> list[BlockLikeness]:
        first, second = (backbone(seed=seed, norm=norm) for seed in (1, 2))
        return compare_backbones(first, second, pictures, plain, count=BATCH, device="cpu")

    changed = Pictures()
    changed.pixels[BATCH:] = 0
    assert rows(changed) == rows(Pictures())


def test_other_architectures_are_compared_where_they_end() -> None:
    tiny, small = TinyBackbone("group", 3), backbone("resnet-small")
    assert paired_blocks(tiny, small) == [("features", "layer4")]
    (row,) = compare(tiny, small)
    assert -1 <= row.cka < 1 and 0 <= row.svcca <= 1


def test_statistics_that_stayed_at_the_site_are_made_of_its_images() -> None:
    local, shared = backbone(norm="batch-local"), backbone(norm="batch")
    recalibrate_batch_norm(shared, Pictures(), plain, device="cpu")
    assert all(row.cka == pytest.approx(1, abs=1e-6) for row in compare(local, shared))
    assert any(row.cka < 0.999 for row in compare(backbone(norm="batch"), shared))


def test_backbones_for_other_channels_are_refused() -> None:
    with pytest.raises(InputError, match="3 channels, the other of 1"):
        compare(backbone(), backbone(channels=1))


def test_whole_batches_are_used() -> None:
    assert [whole_batches(images, 512) for images in (0, 63, 64, 127, 128, 600)] == [0, 0, 64, 64, 128, 512]
    assert whole_batches(600, 100) == 64


def test_a_dead_backbone_has_no_likeness_and_rank_1() -> None:
    dead = backbone()
    with torch.no_grad():
        for weight in dead.parameters():
            weight.zero_()
    rows = compare(dead, backbone())
    assert all(row.cka is None and row.svcca is None for row in rows)
    np.testing.assert_allclose([row.ranks[0] for row in rows], 1, atol=1e-2)
