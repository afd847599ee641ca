"""Layers are the maps after a backbone's blocks, flattened and averaged, and large maps are averaged first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from aiseeme_models.analysis.layer_features import LARGEST_MAP, layer_features, layer_names
from aiseeme_models.backbones import Backbone, build_backbone, initialise
from aiseeme_models.seeding import generator


class Pictures:
    def __init__(self, count: int, side: int) -> None:
        self.pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator(1), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]


def plain(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def backbone(name: str = "resnet-tiny") -> Backbone:
    made = build_backbone(name, norm="group", in_channels=3)
    initialise(made, generator(0))
    return made


def test_every_block_is_there_as_a_map_and_pooled_as_hooks_see_it() -> None:
    made, pictures, seen = backbone(), Pictures(70, 32), {}
    layers = {"stem": made.get_submodule("maxpool")} | {name: made.get_submodule(name) for name in made.blocks[1:]}
    for block, layer in layers.items():
        layer.register_forward_hook(lambda module, given, out, block=block: seen.setdefault(block, []).append(out))
    found = layer_features(made, pictures, plain, layers=layer_names(made), device="cpu")
    assert list(found) == [f"{block}/{form}" for block in made.blocks for form in ("map", "pooled")]
    for block in made.blocks:
        maps = torch.cat(seen[block])
        np.testing.assert_allclose(found[f"{block}/map"], maps.flatten(1), rtol=1e-5)
        np.testing.assert_allclose(found[f"{block}/pooled"], maps.mean(dim=(2, 3)), rtol=1e-5)


def test_only_the_layers_that_are_asked_for_are_kept() -> None:
    made = backbone()
    found = layer_features(made, Pictures(3, 32), plain, layers=("layer4/pooled", "stem/map"), device="cpu")
    assert list(found) == ["stem/map", "layer4/pooled"]
    whole = made.forward_blocks(plain(Pictures(3, 32).pixels))
    np.testing.assert_allclose(found["layer4/pooled"], whole["layer4"].detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet-small", "resnet18"])
def test_a_large_map_is_averaged_over_neighbours(name: str) -> None:
    made = backbone(name)
    found = layer_features(made, Pictures(2, 128), plain, layers=layer_names(made), device="cpu")
    maps = dict(made.block_maps(plain(Pictures(2, 128).pixels)))
    assert maps["stem"][0].numel() > LARGEST_MAP
    assert all(features.shape[1] <= LARGEST_MAP for features in found.values())
    for block, full in maps.items():
        kept = found[f"{block}/map"].reshape(2, full.shape[1], -1)
        if full[0].numel() <= LARGEST_MAP:
            np.testing.assert_allclose(kept.reshape(2, -1), full.detach().flatten(1), rtol=1e-4, atol=1e-6)
        assert kept.mean(axis=2) == pytest.approx(full.mean(dim=(2, 3)).detach().numpy(), rel=0.2, abs=0.05)
