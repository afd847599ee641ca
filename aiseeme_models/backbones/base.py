"""The encoder that every pretext and downstream task shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from aiseeme_models.backbones.norm import Norm
from aiseeme_models.registry import Registry


class Backbone(nn.Module, ABC):
    """An image encoder.

    Attributes:
        in_channels: channels of the images.
        feature_dim: length ``D`` of a pooled feature.
        norm: the normalisation that it was built with.
        blocks: names of what `block_maps` shows, the last of them what `forward_map` gives.
    """

    in_channels: int
    feature_dim: int
    norm: Norm
    blocks: tuple[str, ...] = ("features",)

    @abstractmethod
    def forward_map(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` float32 normalised images to the last feature map ``(B, D, h, w)``."""

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` float32 normalised images to globally averaged features ``(B, D)``."""
        return self.forward_map(images).mean(dim=(2, 3))

    def block_maps(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """``(B, C, H, W)`` float32 normalised images to the map ``(B, D_block, h, w)`` after each of `blocks`.

        A backbone that has more to show than its last map names and gives it.
        """
        yield "features", self.forward_map(images)

    def forward_blocks(self, images: Tensor) -> dict[str, Tensor]:
        """``(B, C, H, W)`` float32 normalised images to globally averaged features ``(B, D_block)`` of each block."""
        return {name: maps.mean(dim=(2, 3)) for name, maps in self.block_maps(images)}


class BackboneFactory(Protocol):
    """Builds a backbone with weights that are not yet seeded."""

    def __call__(self, *, norm: Norm, in_channels: int) -> Backbone:
        """See `build_backbone`."""
        ...


backbones: Registry[BackboneFactory] = Registry("backbone")


def build_backbone(name: str, *, norm: Norm, in_channels: int) -> Backbone:
    """The backbone registered as ``name``; seed its weights with `initialise`.

    Raises:
        InputError: no such backbone.
    """
    return backbones[name](norm=norm, in_channels=in_channels)
