"""Local crops are smaller, show less, and lie beside the global ones of their image."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.augmentation_options import AugmentationOptions
from aiseeme_models.pretext.multi_crop import MultiCropOptions, check_crops, encode_crops, multi_crop
from aiseeme_models.seeding import generator


def ramps(count: int, size: int = 56) -> torch.Tensor:
    """Image i: 2 a column, beginning with i; ``(B, 1, S, S)`` uint8."""
    ramp = torch.arange(size).view(1, 1, 1, -1) * 2 + torch.arange(count).view(-1, 1, 1, 1)
    return ramp.expand(-1, -1, size, -1).to(torch.uint8).contiguous()


def plain(**options) -> BatchAugmentation:
    return BatchAugmentation(AugmentationOptions(**options), [0.0], [1.0])


def widths(crops: torch.Tensor) -> torch.Tensor:
    """How many of the image's columns a crop of `ramps` shows, between the middles of its outer pixels."""
    return (crops.amax(dim=(1, 2, 3)) - crops.amin(dim=(1, 2, 3))) * 255 / 2


def test_an_images_crops_lie_together_and_show_the_asked_part_of_it():
    options = MultiCropOptions(local_crops=3, local_min=0.1, local_max=0.2)
    wide, small = multi_crop(ramps(100), plain(crop_min=0.8), generator(1), options)
    assert wide.shape == (200, 1, 56, 56)
    assert small.shape == (300, 1, 24, 24)
    assert wide.dtype == small.dtype == torch.float32
    shown = (widths(wide) / (56 * 55 / 56)) ** 2
    assert 0.78 < float(shown.min()) < 0.85
    assert float(shown.max()) <= 1.01
    shown = (widths(small) / (56 * 23 / 24)) ** 2
    assert 0.09 < float(shown.min()) < 0.12
    assert 0.18 < float(shown.max()) < 0.22
    changed = ramps(100)
    changed[7] = 255 - changed[7]
    other_wide, other_small = multi_crop(changed, plain(crop_min=0.8), generator(1), options)
    assert torch.nonzero((wide != other_wide).flatten(1).any(dim=1)).flatten().tolist() == [14, 15]
    assert torch.nonzero((small != other_small).flatten(1).any(dim=1)).flatten().tolist() == [21, 22, 23]


def test_the_crops_of_an_image_differ_and_the_same_seed_gives_the_same_ones():
    options = MultiCropOptions(local_crops=2)
    first, again = (multi_crop(ramps(2), plain(crop_min=0.5), generator(1), options) for _ in range(2))
    assert all(torch.equal(own, other) for own, other in zip(first, again, strict=True))
    for crops in first:
        assert not torch.equal(crops[0], crops[1])


def test_without_local_crops_there_are_two_views():
    wide, small = multi_crop(ramps(3), plain(), generator(1), MultiCropOptions(local_crops=0))
    assert (len(wide), len(small)) == (6, 0)
    encoded = encode_crops(lambda crops: crops.mean(dim=(2, 3)), wide, small)
    torch.testing.assert_close(encoded, wide.mean(dim=(2, 3)).view(3, 2, 1))


def test_crops_are_encoded_in_one_pass_a_resolution_and_stand_by_their_image():
    passes = []

    def encode(crops: torch.Tensor) -> torch.Tensor:
        passes.append(tuple(crops.shape))
        return crops.mean(dim=(2, 3))

    wide, small = multi_crop(ramps(4), plain(crop_min=0.5), generator(1), MultiCropOptions(local_crops=3))
    encoded = encode_crops(encode, wide, small)
    assert passes == [(8, 1, 56, 56), (12, 1, 24, 24)]
    for image in range(4):
        own = [*wide[2 * image : 2 * image + 2], *small[3 * image : 3 * image + 3]]
        torch.testing.assert_close(encoded[image, :, 0], torch.stack([crop.mean() for crop in own]))


def test_crops_that_do_not_fit_the_images_are_refused_with_what_would_be_right():
    check_crops("swav", MultiCropOptions(), 28)
    check_crops("swav", MultiCropOptions(local_size=28), 28)
    with pytest.raises(InputError, match="swav's local crops are 29 px wide and images.size is 28"):
        check_crops("swav", MultiCropOptions(local_size=29), 28)
    with pytest.raises(InputError, match="local_size must be at least 12"):
        check_crops("swav", MultiCropOptions(), 24)
    check_crops("swav", MultiCropOptions(local_crops=0), 24)
    with pytest.raises(ValidationError, match="local_min must not exceed local_max"):
        MultiCropOptions(local_min=0.5)


@pytest.mark.parametrize(("image_size", "side"), [(224, 96), (64, 27), (48, 21), (32, 14)])
def test_a_local_crop_is_three_sevenths_of_the_image_wide_unless_told(image_size, side):
    assert MultiCropOptions().local_side(image_size) == side
    assert MultiCropOptions(local_size=20).local_side(image_size) == 20
