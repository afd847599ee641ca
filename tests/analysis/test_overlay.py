"""An overlay shows the network's own pixels, and the map where it is, not elsewhere; its banner hides nothing."""

from __future__ import annotations

import numpy as np
import pytest

from aiseeme_models.analysis.overlay import READABLE_SIDE, overlay, with_banner

RNG = np.random.default_rng(3)
COLOUR = RNG.integers(0, 256, (3, 48, 48), dtype=np.uint8)
COLD = np.zeros((3, 3), np.float32)


@pytest.mark.parametrize(("side", "factor"), [(16, 28), (48, 10), (224, 2), (447, 2), (448, 1), (600, 1)])
def test_small_images_are_enlarged_by_a_whole_factor_without_smoothing(side: int, factor: int) -> None:
    image = RNG.integers(0, 256, (3, side, side), dtype=np.uint8)
    picture = overlay(image, COLD)
    assert picture.dtype == np.uint8 and picture.shape == (side * factor, side * factor, 3)
    assert max(picture.shape) >= READABLE_SIDE
    np.testing.assert_array_equal(picture[::factor, ::factor], image.transpose(1, 2, 0))
    np.testing.assert_array_equal(picture[factor - 1 :: factor, factor - 1 :: factor], image.transpose(1, 2, 0))


@pytest.mark.parametrize("image", [COLOUR[0], COLOUR[:1]])
def test_grey_images_stay_grey(image: np.ndarray) -> None:
    picture = overlay(image, COLD)
    np.testing.assert_array_equal(picture[::10, ::10], np.repeat(COLOUR[0][..., None], 3, axis=-1))


def test_colour_is_where_the_map_is() -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 0.02  # only its maximum counts
    image = np.full((1, 64, 64), 128, np.uint8)
    picture = overlay(image, heat).astype(int)
    changed = np.abs(picture - 128).sum(axis=-1)
    side = len(picture) // 4
    assert (changed[2 * side :] == 0).all() and (changed[:, : 2 * side] == 0).all(), "far from it nothing is touched"
    hottest = np.unravel_index(changed.argmax(), changed.shape)
    assert hottest[0] < side and hottest[1] >= 3 * side
    assert np.ptp(picture[hottest]) > 60, "a colour, no grey"
    np.testing.assert_array_equal(picture, overlay(image, heat * 1000))


def test_the_map_is_interpolated_between_its_places() -> None:
    picture = overlay(np.zeros((448, 448), np.uint8), np.array([[0.0, 1.0]], np.float32)).astype(int)
    brightness = picture.sum(axis=-1)[0]
    assert (np.diff(brightness) >= -12).all() and brightness[0] == 0 and len(np.unique(brightness)) > 50


def test_planes_that_stand_apart_are_each_under_the_same_map() -> None:
    heat = RNG.random((3, 3)).astype(np.float32)
    picture = overlay(COLOUR, heat, apart=True)
    assert picture.shape == (480, 3 * 480, 3)
    for place, plane in enumerate(COLOUR):
        np.testing.assert_array_equal(picture[:, place * 480 : (place + 1) * 480], overlay(plane, heat))


def test_a_banner_hides_nothing_and_is_visible() -> None:
    picture = overlay(COLOUR, COLD)
    whole = with_banner(picture, ["research use only", "grad-cam, melanoma 0.810"])
    np.testing.assert_array_equal(whole[: len(picture)], picture)
    strip = whole[len(picture) :]
    assert strip.shape[1:] == picture.shape[1:] and len(strip) >= 30
    assert (strip.max(axis=-1) > 200).mean() > 0.01, "bright letters"
    assert (strip.max(axis=-1) < 40).mean() > 0.5, "on a dark ground"
    assert not np.array_equal(with_banner(picture, ["a"]), with_banner(picture, ["b"]))
