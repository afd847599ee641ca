"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", 2016; arXiv 1512.03385).

The state dicts have torchvision's names and shapes (without ``fc``), so that its weights can be loaded. Nothing is
done in place: the full backward hooks of per-sample gradients (Opacus) refuse torchvision's ``out += identity``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from aiseeme_models.backbones.base import Backbone, backbones
from aiseeme_models.backbones.norm import Layers, Norm, layers_2d


def _conv(layers: Layers, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return layers.conv(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int, layers: Layers) -> nn.Sequential | None:
    """The projection of a block that changes the shape, else None (identity)."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv(layers, in_channels, out_channels, 1, stride), layers.norm(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, width: int, stride: int, layers: Layers) -> None:
        super().__init__()
        self.conv1 = _conv(layers, in_channels, width, 3, stride)
        self.bn1 = layers.norm(width)
        self.conv2 = _conv(layers, width, width, 3)
        self.bn2 = layers.norm(width)
        self.downsample = _shortcut(in_channels, width, stride, layers)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in, h, w)`` to ``(B, width, h / stride, w / stride)``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        identity = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + identity)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride, as in torchvision's "v1.5") and 1x1 convolutions and a shortcut."""

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, width: int, stride: int, layers: Layers) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = _conv(layers, in_channels, width, 1)
        self.bn1 = layers.norm(width)
        self.conv2 = _conv(layers, width, width, 3, stride)
        self.bn2 = layers.norm(width)
        self.conv3 = _conv(layers, width, out_channels, 1)
        self.bn3 = layers.norm(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride, layers)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in, h, w)`` to ``(B, 4 * width, h / stride, w / stride)``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + identity)


class ResNet(Backbone):
    """A ResNet without classifier.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks of each of the four layers.
        width: channels of the first layer; each layer doubles it.
        small_images: 3x3 stem with stride 2 and no max-pooling, for images of about 32 to 96 px.
        norm: normalisation.
        in_channels: channels of the images.
    """

    blocks = ("stem", "layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        width: int = 64,
        small_images: bool = False,
        norm: Norm,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.in_channels = in_channels
        self.feature_dim = width * 8 * block.expansion
        layers = layers_2d(norm)
        self.conv1 = _conv(layers, in_channels, width, 3 if small_images else 7, 2)
        self.bn1 = layers.norm(width)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        levels: list[nn.Module] = []
        for level, depth in enumerate(depths):
            blocks: list[nn.Module] = []
            for index in range(depth):
                stride = 2 if level > 0 and index == 0 else 1
                blocks.append(block(channels, width << level, stride, layers))
                channels = (width << level) * block.expansion
            levels.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = levels

    def forward_map(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, D, H/32, W/32)``, or ``H/16`` with ``small_images``."""
        x = self.layer2(self.layer1(self._stem(images)))
        features: Tensor = self.layer4(self.layer3(x))
        return features

    def block_maps(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """See `Backbone.block_maps`: stem and the four layers."""
        x = self._stem(images)
        yield "stem", x
        for name in self.blocks[1:]:
            x = self.get_submodule(name)(x)
            yield name, x

    def _stem(self, images: Tensor) -> Tensor:
        stem: Tensor = self.maxpool(torch.relu(self.bn1(self.conv1(images))))
        return stem


@backbones.register("resnet-tiny")
def resnet_tiny(*, norm: Norm, in_channels: int) -> Backbone:
    """One block a stage, a quarter of ResNet-18's width (0.3 M parameters), for trying things out; 128 features."""
    return ResNet(BasicBlock, (1, 1, 1, 1), width=16, small_images=True, norm=norm, in_channels=in_channels)


@backbones.register("resnet-small")
def resnet_small(*, norm: Norm, in_channels: int) -> Backbone:
    """ResNet-18's layout with a quarter of its parameters (2.8 M), for small images and CPUs; 256 features."""
    return ResNet(BasicBlock, (2, 2, 2, 2), width=32, small_images=True, norm=norm, in_channels=in_channels)


@backbones.register("resnet18")
def resnet18(*, norm: Norm, in_channels: int) -> Backbone:
    """ResNet-18: 11.2 M parameters, 512 features."""
    return ResNet(BasicBlock, (2, 2, 2, 2), norm=norm, in_channels=in_channels)


@backbones.register("resnet34")
def resnet34(*, norm: Norm, in_channels: int) -> Backbone:
    """ResNet-34: 21.3 M parameters, 512 features."""
    return ResNet(BasicBlock, (3, 4, 6, 3), norm=norm, in_channels=in_channels)


@backbones.register("resnet50")
def resnet50(*, norm: Norm, in_channels: int) -> Backbone:
    """ResNet-50: 23.5 M parameters, 2048 features."""
    return ResNet(Bottleneck, (3, 4, 6, 3), norm=norm, in_channels=in_channels)
