"""The pipeline from a file to a square uint8 array, and the options that name it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError

from aiseeme_models.images.augmentation_options import AugmentationOptions
from aiseeme_models.images.preprocessing import preprocess, preprocessing
from aiseeme_models.images.presets import ImageOptions, image_presets
from aiseeme_models.images.reading import ImageRejected, RejectReason


@pytest.fixture
def picture(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    rng = np.random.default_rng(0)
    array = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)).resize((150, 90)))
    Image.fromarray(array).save(tmp_path / "a.png")
    return tmp_path / "a.png", torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float()


def test_crop_is_the_resized_centre_square(picture: tuple[Path, torch.Tensor]) -> None:
    path, image = picture
    ours = preprocess(preprocessing(ImageOptions(preset="dermoscopy", size=32)), path)
    expected = F.interpolate(image[..., 30:120], (32, 32), mode="bilinear", antialias=True)[0]
    assert ours.shape == (3, 32, 32) and ours.dtype == torch.uint8
    assert (ours.float() - expected).abs().max() <= 1


def test_pad_keeps_the_whole_image_on_black(picture: tuple[Path, torch.Tensor]) -> None:
    path, image = picture
    ours = preprocess(preprocessing(ImageOptions(preset="chest-xray", size=50)), path)[0].float()
    grey = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    expected = F.interpolate(grey, (30, 50), mode="bilinear", antialias=True)[0, 0]
    assert (ours[10:40] - expected).abs().max() <= 1
    assert (ours[:10] == 0).all() and (ours[40:] == 0).all()


def test_grey_images_fill_three_channels(tmp_path: Path) -> None:
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(tmp_path / "a.png")
    ours = preprocess(preprocessing(ImageOptions(preset="dermoscopy", size=16)), tmp_path / "a.png")
    assert ours.shape == (3, 16, 16) and (ours == ours[:1]).all() and ours.float().std() > 0


def test_a_rejected_file_keeps_its_reason_through_monai(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ImageRejected) as caught:
        preprocess(preprocessing(ImageOptions(preset="dermoscopy", size=32)), tmp_path / "a.png")
    assert caught.value.reason == RejectReason.NOT_AN_IMAGE


def test_the_pipeline_key_follows_the_array_and_not_the_augmentation() -> None:
    plain = ImageOptions(preset="dermoscopy", size=64)
    louder = ImageOptions(preset="dermoscopy", size=64, augmentation=AugmentationOptions(brightness=0.5))
    assert plain.pipeline.key == louder.pipeline.key
    others = [
        ImageOptions(preset="dermoscopy", size=65),
        ImageOptions(preset="chest-xray", size=64),
        ImageOptions(preset="ct-lung", size=64),
    ]
    assert len({options.pipeline.key for options in [plain, *others]}) == 4


def test_given_strengths_replace_those_of_the_preset_and_no_others() -> None:
    options = ImageOptions.model_validate(
        {"preset": "dermoscopy", "size": 64, "augmentation": {"brightness": 0.5, "flip_vertical": False}}
    )
    merged, preset = options.resolved_preset.augmentation, image_presets["dermoscopy"].augmentation
    assert (merged.brightness, merged.flip_vertical) == (0.5, False)
    assert merged.rotation_degrees == preset.rotation_degrees == 180
    assert preset.brightness == 0.15


def test_colour_is_kept_in_dermoscopy_and_the_heart_stays_on_the_left() -> None:
    skin, chest = image_presets["dermoscopy"].augmentation, image_presets["chest-xray"].augmentation
    assert (skin.hue, skin.grayscale_p) == (0, 0)
    assert not chest.flip_horizontal and not chest.flip_vertical


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"preset": "dermoscpy", "size": 64}, "did you mean 'dermoscopy'"),
        ({"preset": "dermoscopy", "size": 8}, "16"),
        ({"preset": "dermoscopy", "size": 64, "colour": 1}, "colour"),
        ({"preset": "dermoscopy", "size": "64"}, "integer"),
        ({"preset": "chest-xray", "size": 64, "augmentation": {"crop_min": 1.5}}, "crop_min"),
    ],
)
def test_wrong_image_options_say_what_would_be_right(wrong: dict[str, object], hint: str) -> None:
    with pytest.raises(ValidationError, match=hint):
        ImageOptions.model_validate(wrong)
