"""Features come in order, from a backbone that is left as it was; the floor sees thumbnails and colours only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aiseeme_models.downstream.features import extract_features, recalibrate_batch_norm
from aiseeme_models.downstream.floor import thumbnail_features, thumbnail_floor
from aiseeme_models.errors import InputError


class Pictures:
    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Tensor) -> Tensor:
        assert indices.dtype == torch.int64
        return self.pixels[indices]


def pictures(n: int, channels: int = 3, side: int = 24) -> Pictures:
    generator = torch.Generator().manual_seed(0)
    return Pictures(torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8))


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def normalise(images: Tensor) -> Tensor:
    return images.float() / 255.0


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_features_do_not_depend_on_the_batch_size_and_leave_the_backbone_alone(batch_size: int) -> None:
    backbone, images = network().train(), pictures(20)
    backbone[1].eval()  # a mode of its own
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    features = extract_features(backbone, images, normalise, device="cpu", batch_size=batch_size)
    assert features.shape == (20, 4) and features.dtype == np.float32
    assert backbone.training and not backbone[1].training and backbone[3].training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    backbone.eval()
    with torch.no_grad():
        expected = torch.cat([backbone(normalise(images.pixels[i : i + 1])) for i in range(20)])
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-6)


def test_no_images_is_an_error() -> None:
    with pytest.raises(InputError, match="no images"):
        extract_features(network(), pictures(0), normalise, device="cpu")


def test_batch_norm_gets_the_statistics_of_the_images_even_if_they_lie_sorted() -> None:
    backbone, images = network(), pictures(64)
    images.pixels = images.pixels // torch.arange(1, 65).view(-1, 1, 1, 1)  # bright first, dark last
    backbone[1].running_mean.fill_(123.0)
    recalibrate_batch_norm(backbone, images, normalise, device="cpu", batch_size=16)
    with torch.no_grad():
        maps = backbone[0](normalise(images.pixels))  # (64, 4, 22, 22)
    torch.testing.assert_close(backbone[1].running_mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(backbone[1].running_var, maps.var((0, 2, 3)), rtol=0.05, atol=0.0)
    assert backbone[1].momentum == 0.1 and backbone.training


def test_backbones_without_batch_norm_need_no_recalibration() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    recalibrate_batch_norm(backbone, pictures(1), normalise, device="cpu")
    with pytest.raises(InputError, match="at least 2 images"):
        recalibrate_batch_norm(network(), pictures(1), normalise, device="cpu")


def test_the_floor_sees_area_means_and_histograms() -> None:
    images = pictures(5, channels=3, side=40)
    features = thumbnail_features(images, batch_size=2)
    assert features.shape == (5, 3 * 416)
    pixels = images.pixels.numpy()
    blocks = pixels.reshape(5, 3, 20, 2, 20, 2).mean(axis=(3, 5)) / 255.0
    np.testing.assert_allclose(features[:, :1200], blocks.reshape(5, 1200), rtol=1e-5)
    expected = [np.histogram(pixels[2, c], bins=16, range=(0, 256))[0] / 1600 for c in range(3)]
    np.testing.assert_allclose(features[2, 1200:].reshape(3, 16), expected, rtol=1e-5)


def test_the_floor_tells_bright_from_dark() -> None:
    images = pictures(40)
    labels = ["dark" if index % 2 else "bright" for index in range(40)]
    images.pixels[1::2] //= 3
    score = thumbnail_floor(images, labels, images, labels)
    assert score.balanced_accuracy == 1.0 and score.n_train == score.n_test == 40
