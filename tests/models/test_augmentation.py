"""Views differ from their image in the ways that were asked for, and in no other."""

from __future__ import annotations

import pytest
import torch
import torchvision.transforms.v2.functional as V
from pydantic import ValidationError
from torch import Tensor

from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.augmentation_options import AugmentationOptions
from aiseeme_models.seeding import generator

LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


def pixel_views(images: Tensor, seed: int = 0, size: int | None = None, **options) -> Tensor:
    """Views in [0, 1] pixel units."""
    channels = images.shape[1]
    augmentation = BatchAugmentation(AugmentationOptions(**options), [0.0] * channels, [1.0] * channels)
    return augmentation(images, generator(seed), size)


def random_images(count: int = 32, channels: int = 3, size: int = 24, low: int = 90, high: int = 160) -> Tensor:
    """Mid-grey noise: no colour operation of the tests reaches the clamp."""
    return torch.randint(low, high, (count, channels, size, size), generator=generator(9), dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_without_options_a_view_is_the_normalised_image(channels):
    images = random_images(channels=channels, low=0, high=256)
    mean, std = [0.5, 0.4, 0.3][:channels], [0.2, 0.3, 0.4][:channels]
    augmentation = BatchAugmentation(AugmentationOptions(), mean, std)
    expected = V.normalize(images.float() / 255, mean, std)
    torch.testing.assert_close(augmentation.plain(images), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(augmentation(images, generator(0)), expected, atol=1e-3, rtol=1e-4)


def test_flips_mirror_about_half_of_the_images():
    images = random_images(200)
    views, plain = pixel_views(images, flip_horizontal=True), images / 255
    mirrored = plain.flip(3)
    is_mirrored = (views - mirrored).abs().amax(dim=(1, 2, 3)) < 1e-3
    is_same = (views - plain).abs().amax(dim=(1, 2, 3)) < 1e-3
    assert bool((is_mirrored ^ is_same).all())
    assert 60 < int(is_mirrored.sum()) < 140
    upside_down = pixel_views(images, flip_vertical=True)
    assert bool((((upside_down - plain.flip(2)).abs().amax(dim=(1, 2, 3)) < 1e-3) | is_close(upside_down, plain)).all())


def is_close(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).abs().amax(dim=(1, 2, 3)) < 1e-3


def test_a_rotation_moves_a_point_along_its_circle_by_every_angle():
    size, radius = 65, 14  # mirrored pixels begin at a radius of 18
    image = torch.zeros(1, 1, size, size, dtype=torch.uint8)
    image[..., 31:34, 32 + radius - 1 : 32 + radius + 2] = 255
    views = pixel_views(image.expand(300, -1, -1, -1).contiguous(), rotation_degrees=180)
    axis = torch.arange(size) - 32.0
    mass = views.sum(dim=(1, 2, 3))
    x = (views[:, 0] * axis.view(1, 1, -1)).sum(dim=(1, 2)) / mass
    y = (views[:, 0] * axis.view(1, -1, 1)).sum(dim=(1, 2)) / mass
    torch.testing.assert_close(x.hypot(y), torch.full((300,), float(radius)), atol=0.3, rtol=0)
    angle = torch.rad2deg(torch.atan2(y, x))
    assert all(int(((angle >= low) & (angle < low + 90)).sum()) > 20 for low in (-180, -90, 0, 90))
    little = pixel_views(image.expand(50, -1, -1, -1).contiguous(), rotation_degrees=10)
    y = (little[:, 0] * axis.view(1, -1, 1)).sum(dim=(1, 2)) / little.sum(dim=(1, 2, 3))
    assert 2.2 < float(y.abs().max()) <= radius * 0.1737 + 0.1  # sin(10 degrees)


def test_crops_show_the_asked_part_of_the_area_and_stay_inside():
    size = 64
    ramp = torch.arange(size) * 3.0
    x = ramp.view(1, 1, 1, -1).expand(300, 1, size, size).to(torch.uint8)
    across = pixel_views(x, crop_min=0.3, crop_max=0.5)[:, 0] * 255 / 3
    down = pixel_views(x.transpose(2, 3).contiguous(), crop_min=0.3, crop_max=0.5)[:, 0] * 255 / 3
    width = across.amax(dim=(1, 2)) - across.amin(dim=(1, 2))
    height = down.amax(dim=(1, 2)) - down.amin(dim=(1, 2))
    area = (width / (size - 1)) * (height / (size - 1))
    assert 0.28 < float(area.min()) < 0.33
    assert 0.47 < float(area.max()) < 0.52
    assert float(across.amin()) < 3
    assert float(across.amax()) > size - 4  # crops reach both ends
    assert bool((across.diff(dim=2) > 0).all())  # no reflection: the crop lies inside


def test_cropped_changes_the_part_that_is_shown_and_nothing_else():
    options = AugmentationOptions(crop_min=0.6, rotation_degrees=20, brightness=0.2, flip_horizontal=True, aspect=1.2)
    augmentation = BatchAugmentation(options, [0.4], [0.2])
    smaller = augmentation.cropped(0.1, 0.3)
    expected = options.model_dump() | {"crop_min": 0.1, "crop_max": 0.3}
    assert smaller.options == AugmentationOptions(**expected)
    assert (smaller.mean, smaller.std) == (augmentation.mean, augmentation.std)
    assert augmentation.options.crop_min == 0.6


def test_the_aspect_ratio_stays_within_its_bound():
    size = 64
    x = (torch.arange(size) * 3).view(1, 1, 1, -1).expand(300, 1, size, size).to(torch.uint8)
    options = {"crop_min": 0.4, "crop_max": 0.4, "aspect": 1.5}
    width = pixel_views(x, **options)[:, 0].amax(dim=(1, 2)) - pixel_views(x, **options)[:, 0].amin(dim=(1, 2))
    turned = pixel_views(x.transpose(2, 3).contiguous(), **options)[:, 0]
    height = turned.amax(dim=(1, 2)) - turned.amin(dim=(1, 2))
    ratio = width / height
    assert 1.4 < float(ratio.max()) < 1.55
    assert 0.65 < float(ratio.min()) < 0.72


def test_brightness_multiplies_by_one_factor_an_image():
    images = random_images(100)
    ratio = pixel_views(images, brightness=0.2) / (images / 255)
    factor = ratio.mean(dim=(1, 2, 3))
    torch.testing.assert_close(ratio, factor.view(-1, 1, 1, 1).expand_as(ratio), atol=1e-3, rtol=0)
    assert 0.8 <= float(factor.min()) < 0.83
    assert 1.17 < float(factor.max()) <= 1.2


@pytest.mark.parametrize(("option", "adjust"), [("contrast", V.adjust_contrast), ("saturation", V.adjust_saturation)])
def test_contrast_and_saturation_are_torchvisions(option, adjust):
    images = random_images(50)
    views, plain = pixel_views(images, **{option: 0.3}), images / 255
    for view, image in zip(views, plain, strict=True):
        base = adjust(image, 0.0)  # the image that the factor moves away from
        factor = float(((view - base) * (image - base)).sum() / ((image - base) ** 2).sum())
        assert 0.7 <= factor <= 1.3
        torch.testing.assert_close(view, adjust(image, factor), atol=2e-3, rtol=0)


def test_hue_turns_colours_and_leaves_luminance_and_greys_alone():
    images = random_images(50)
    views, plain = pixel_views(images, hue=0.2), images / 255
    torch.testing.assert_close((views * LUMA).sum(dim=1), (plain * LUMA).sum(dim=1), atol=2e-3, rtol=0)
    assert float((views - plain).abs().amax(dim=(1, 2, 3)).median()) > 0.02
    grey = images[:, :1].expand(-1, 3, -1, -1).contiguous()
    torch.testing.assert_close(pixel_views(grey, hue=0.2), grey / 255, atol=2e-3, rtol=0)


def test_grayscale_keeps_the_luminance_only():
    images = random_images(20)
    views = pixel_views(images, grayscale_p=1.0)
    expected = (images / 255 * LUMA).sum(dim=1, keepdim=True).expand_as(views)
    torch.testing.assert_close(views, expected, atol=2e-3, rtol=0)


def test_blur_is_a_gaussian_of_the_images_that_were_chosen():
    images = random_images(60, size=112)
    views, plain = pixel_views(images, blur_p=0.5), images / 255
    changed = ~is_close(views, plain)
    assert 15 < int(changed.sum()) <= 35
    variance = views[changed].var(dim=(1, 2, 3)) / plain[changed].var(dim=(1, 2, 3))
    assert float(variance.min()) < 0.2
    assert float(variance.max()) < 1
    strongest = int(torch.where(changed, -views.var(dim=(1, 2, 3)), -1e9).argmax())
    closest = min(
        float((V.gaussian_blur(plain[strongest], [7, 7], [sigma, sigma]) - views[strongest]).abs().mean())
        for sigma in torch.linspace(0.5, 1.0, 26).tolist()
    )
    assert closest < 1e-3


def test_noise_has_the_asked_strength():
    images = random_images(20)
    difference = pixel_views(images, noise_std=0.05) - images / 255
    assert float(difference.std()) == pytest.approx(0.05, rel=0.05)
    assert abs(float(difference.mean())) < 1e-3


def test_views_are_clamped_to_the_pixel_range():
    images = random_images(50, low=0, high=256)
    views = pixel_views(images, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1)
    assert float(views.min()) >= 0
    assert float(views.max()) <= 1


EVERYTHING = {
    "rotation_degrees": 30.0,
    "flip_horizontal": True,
    "crop_min": 0.4,
    "aspect": 1.3,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.05,
    "grayscale_p": 0.2,
    "blur_p": 0.5,
    "noise_std": 0.02,
}


@pytest.mark.parametrize("channels", [1, 3])
def test_the_generator_is_the_only_source_of_randomness(channels):
    images = random_images(channels=channels)
    torch.manual_seed(1)
    first = pixel_views(images, seed=5, size=16, **EVERYTHING)
    torch.manual_seed(2)
    again = pixel_views(images, seed=5, size=16, **EVERYTHING)
    assert first.shape == (32, channels, 16, 16)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, pixel_views(images, seed=6, size=16, **EVERYTHING))


def test_switching_colours_on_does_not_move_the_crops():
    images = random_images(low=120, high=130)
    geometry = {"rotation_degrees": 30.0, "crop_min": 0.4}
    plain = pixel_views(images, seed=5, **geometry)
    coloured = pixel_views(images, seed=5, brightness=0.1, **geometry)
    factor = coloured.mean(dim=(1, 2, 3), keepdim=True) / plain.mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(coloured, plain * factor, atol=1e-3, rtol=0)


def test_views_do_not_change_under_autocast():
    images = random_images()
    expected = pixel_views(images, saturation=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pixel_views(images, saturation=0.2), expected)


def test_upright_views_are_neither_turned_nor_upside_down():
    size = 32
    y = (torch.arange(size) * 7).view(1, 1, -1, 1).expand(100, 1, size, size).to(torch.uint8)
    options = AugmentationOptions(rotation_degrees=180, flip_vertical=True, flip_horizontal=True, crop_min=0.5)
    upright = BatchAugmentation(options, [0.0], [1.0]).upright()
    assert bool((upright(y, generator(0)).diff(dim=2) > 0).all())


def test_impossible_options_are_refused():
    with pytest.raises(ValidationError, match="crop_min must not exceed crop_max"):
        AugmentationOptions(crop_min=0.9, crop_max=0.5)
    with pytest.raises(ValidationError):
        AugmentationOptions(sharpness=1)
