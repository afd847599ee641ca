"""Colourisation: Lab is the published one, the colours are the paper's 313, and no colour reaches the network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.augmentation_options import AugmentationOptions
from aiseeme_models.images.cielab import rgb_to_lab
from aiseeme_models.pretext.colourisation import Colourisation, ColourisationOptions, colour_grid, nearest_colours
from aiseeme_models.seeding import generator

MEAN, STD = (0.755, 0.545, 0.570), (0.135, 0.153, 0.169)

# scikit-image 0.26, skimage.color.rgb2lab
PUBLISHED = {
    (1.0, 0.0, 0.0): (53.2406, 80.0923, 67.2028),
    (0.0, 1.0, 0.0): (87.7351, -86.1830, 83.1797),
    (0.0, 0.0, 1.0): (32.2957, 79.1856, -107.8573),
    (0.0, 1.0, 1.0): (91.1133, -48.0906, -14.1263),
    (1.0, 0.0, 1.0): (60.3235, 98.2331, -60.8210),
    (1.0, 1.0, 0.0): (97.1395, -21.5547, 94.4781),
    (1.0, 1.0, 1.0): (100.0, 0.0, 0.0),
    (0.0, 0.0, 0.0): (0.0, 0.0, 0.0),
    (0.8, 0.5, 0.3): (60.4960, 24.7942, 39.6594),
}


def as_it_is(**options):
    return BatchAugmentation(AugmentationOptions(**options), mean=MEAN, std=STD)


def lab_of(red, green, blue):
    """CIE 15:2004 on linear light, with XYZ made of sRGB's primaries and white (IEC 61966-2-1)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (red, green, blue)]
    primaries = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))]).T
    white = np.array([0.3127 / 0.3290, 1.0, (1 - 0.3127 - 0.3290) / 0.3290])
    xyz = primaries @ (np.linalg.solve(primaries, white) * linear) / white
    fx, fy, fz = (t ** (1 / 3) if t > (6 / 29) ** 3 else t * (29 / 6) ** 2 / 3 + 4 / 29 for t in xyz)
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


@pytest.mark.parametrize(("rgb", "lab"), PUBLISHED.items())
def test_lab_is_that_of_published_tables(rgb, lab):
    found = rgb_to_lab(torch.tensor(rgb).view(1, 3, 1, 1)).flatten()
    assert found.tolist() == pytest.approx(lab, abs=0.01)


def test_lab_is_that_of_the_standard_written_out():
    pixels = torch.rand((2, 3, 9, 9), generator=generator(1))
    pixels[1] *= 0.06  # the straight pieces near black
    found = rgb_to_lab(pixels).permute(0, 2, 3, 1).reshape(-1, 3)
    for own, rgb in zip(found.tolist(), pixels.permute(0, 2, 3, 1).reshape(-1, 3).tolist(), strict=True):
        assert own == pytest.approx(lab_of(*rgb), abs=0.02)


def test_greys_have_no_colour():
    grey = torch.linspace(0, 1, 256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert rgb_to_lab(grey)[:, 1:].abs().max() < 1e-3


def test_a_grid_of_ten_makes_the_313_colours_of_the_paper():
    colours = [tuple(map(int, colour)) for colour in colour_grid(10).tolist()]
    assert len(colours) == len(set(colours)) == 313
    assert colours == sorted(colours)
    # The first and the last that the authors publish.
    assert colours[:7] == [(-90, 50), (-90, 60), (-90, 70), (-90, 80), (-90, 90), (-80, 20), (-80, 30)]
    assert colours[-6:] == [(100, -50), (100, -40), (100, -30), (100, -20), (100, -10), (100, 0)]


@pytest.mark.parametrize("grid", [5, 10, 13, 40])
def test_the_target_is_the_nearest_colour_also_of_means_of_colours(grid):
    pixels = torch.rand((1, 3, 60, 60), generator=generator(1))
    pixels[..., :30] = pixels[..., :30].round()  # the corners of the cube
    ab = rgb_to_lab(pixels)[:, 1:]
    ab = torch.cat([ab.flatten(2), torch.nn.functional.avg_pool2d(ab, 3).flatten(2)], dim=2).unsqueeze(-1)
    chosen = nearest_colours(ab, grid).flatten()
    distances = torch.cdist(ab[0, :, :, 0].T, colour_grid(grid))
    assert int(chosen.min()) >= 0
    torch.testing.assert_close(distances.gather(1, chosen.view(-1, 1)).flatten(), distances.min(dim=1).values)


def test_the_network_sees_lightness_and_nothing_of_the_colours(tiny_task):
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=generator(2), dtype=torch.uint8)
    seen, colours = tiny_task("colourisation").views(pixels, as_it_is(), generator(1))
    lab = rgb_to_lab(pixels.float() / 255)
    grey = seen * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)
    for channel in range(3):
        torch.testing.assert_close(grey[:, channel], lab[:, 0] / 100, atol=1e-4, rtol=0)
    torch.testing.assert_close(colours, lab[:, 1:], atol=0.05, rtol=0)


def test_the_colours_asked_for_are_the_images_own_whatever_the_augmentation(tiny_task):
    pixels = torch.randint(0, 256, (8, 3, 32, 32), generator=generator(2), dtype=torch.uint8)
    task = tiny_task("colourisation")
    strong = as_it_is(saturation=1.0, hue=0.5, grayscale_p=0.7)
    for own, other in zip(
        task.views(pixels, strong, generator(1)), task.views(pixels, as_it_is(), generator(1)), strict=True
    ):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("grid", [10, 20])
def test_the_loss_is_that_of_every_cell_written_out(grid, tiny_task, toy_images, augmentation):
    task = tiny_task("colourisation", grid=grid)
    seen, ab = task.views(toy_images(2).pixels, augmentation, generator(1))
    features = task.backbone.forward_map(seen)  # (2, D, 3, 3)
    colours = colour_grid(grid)
    total = torch.zeros(())
    for image in range(2):
        for row in range(3):
            for column in range(3):
                mean = ab[image, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].mean(dim=(1, 2))
                target = int((colours - mean).square().sum(dim=1).argmin())
                logits = task.head.weight[:, :, 0, 0] @ features[image, :, row, column] + task.head.bias
                total = total - (logits[target] - logits.exp().sum().log()) / 18
    loss = task.loss((seen, ab), generator(2))
    assert loss.item() == pytest.approx(total.item(), abs=1e-5)
    weights = [task.backbone.conv1.weight, task.head.weight]
    for own, other in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(total, weights), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def test_a_head_that_says_nothing_costs_the_logarithm_of_all_colours(tiny_task, toy_images, augmentation):
    task = tiny_task("colourisation")
    torch.nn.init.zeros_(task.head.weight)
    torch.nn.init.zeros_(task.head.bias)
    views = task.views(toy_images(2).pixels, augmentation, generator(1))
    assert task.loss(views, generator(2)).item() == pytest.approx(math.log(313), abs=1e-5)


def test_grey_images_are_refused():
    with pytest.raises(InputError, match="needs colours.*1 channel"):
        Colourisation.check(ColourisationOptions(), norm="group", batch_size=8, image_size=48, channels=1)
    Colourisation.check(ColourisationOptions(), norm="group", batch_size=8, image_size=48, channels=3)
