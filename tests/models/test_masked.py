"""Masked reconstruction: hidden pixels reach only the loss, seen pixels only the network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aiseeme_models.backbones import Backbone, build_backbone
from aiseeme_models.curriculum.stage_tasks import build_task
from aiseeme_models.errors import InputError
from aiseeme_models.pretext.masked import Masked, MaskedOptions, masked_l1
from aiseeme_models.seeding import generator


class CellNumbers(Backbone):
    """A stand-in with stride 16 whose map holds the number of each cell, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels, self.feature_dim, self.norm = 1, 1, "group"
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward_map(self, images: Tensor) -> Tensor:
        rows, columns = (-(-side // 16) for side in images.shape[2:])
        return torch.arange(rows * columns).float().view(1, 1, rows, columns).expand(len(images), -1, -1, -1)


def hidden_areas():
    hidden = torch.rand((3, 1, 6, 6), generator=generator(3)) < 0.5
    hidden[1] = False
    hidden[1, :, 0, 0] = True  # areas that differ: every image still counts the same
    return hidden


def test_the_loss_is_the_mean_over_hidden_pixels_written_out():
    hidden = hidden_areas()
    made = torch.randn((3, 2, 6, 6), generator=generator(1), requires_grad=True)
    images = torch.randn((3, 2, 6, 6), generator=generator(2))
    total = torch.zeros(())
    for image in range(3):
        errors = [
            abs(made[image, c, y, x] - images[image, c, y, x])
            for c in range(2)
            for y in range(6)
            for x in range(6)
            if hidden[image, 0, y, x]
        ]
        total = total + sum(errors) / len(errors) / 3
    loss = masked_l1(made, images, hidden)
    assert loss.item() == pytest.approx(total.item(), abs=1e-5)
    (own,), (other,) = torch.autograd.grad(loss, made), torch.autograd.grad(total, made)
    torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


def test_with_equal_areas_the_loss_is_torchs_l1_loss_of_the_hidden_pixels():
    hidden = torch.zeros((3, 1, 8, 8), dtype=torch.bool)
    hidden[:, :, :4, 2:] = True
    made, images = torch.randn((2, 3, 2, 8, 8), generator=generator(1))
    chosen = hidden.expand(-1, 2, -1, -1)
    expected = torch.nn.L1Loss()(made[chosen], images[chosen])
    torch.testing.assert_close(masked_l1(made, images, hidden), expected)
    assert masked_l1(made.bfloat16(), images.bfloat16(), hidden).dtype == torch.float32


@pytest.mark.parametrize(
    ("size", "options", "squares"),
    [(48, {}, 22), (32, {}, 39), (48, {"patch": 16}, 6), (40, {"patch": 4, "mask_ratio": 0.55}, 55)],
)
def test_the_same_number_of_whole_squares_is_hidden_of_every_image(size, options, squares, tiny_task, augmentation):
    images = torch.zeros((50, 3, size, size), dtype=torch.uint8)
    patch = options.get("patch") or {48: 8, 32: 4}[size]
    whole, hidden = tiny_task("masked", **options).views(images, augmentation, generator(1))
    assert (whole.shape, hidden.shape, hidden.dtype) == (images.shape, (50, 1, size, size), torch.bool)
    tiles = hidden[:, 0].unfold(1, patch, patch).unfold(2, patch, patch).flatten(3)  # (50, n, n, patch * patch)
    assert torch.equal(tiles.all(dim=3), tiles.any(dim=3))
    assert tiles.any(dim=3).flatten(1).sum(dim=1).tolist() == [squares] * 50
    often = tiles.all(dim=3).float().mean(dim=0)
    assert float(often.min()) > 0.3 and float(often.max()) < 0.9, "no place is hidden always or never"


def test_the_network_sees_nothing_of_what_is_hidden_and_is_asked_for_nothing_else(tiny_task, toy_images, augmentation):
    task = tiny_task("masked")
    whole, hidden = task.views(toy_images(2).pixels, augmentation, generator(1))
    seen = []
    task.backbone.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    loss = task.loss((whole, hidden), generator(2))
    other = torch.where(hidden, 7.0, whole)
    changed = task.loss((other, hidden), generator(2))
    assert torch.equal(seen[0], seen[1])
    assert bool((seen[0][hidden.expand_as(whole)] == 0).all())
    assert torch.equal(seen[0][~hidden.expand_as(whole)], whole[~hidden.expand_as(whole)])
    assert abs(changed.item() - loss.item()) > 1
    made = task.head(task.backbone.forward_map(seen[0]))
    assert loss.item() == pytest.approx(masked_l1(made, torch.where(hidden, whole, -9.0), hidden).item())


@pytest.mark.parametrize(("height", "width"), [(48, 48), (40, 56), (16, 24)])
def test_every_cell_of_the_map_writes_the_pixels_that_lie_under_it(height, width):
    task = build_task("masked", CellNumbers(), MaskedOptions(patch=8), "group")
    torch.nn.init.ones_(task.head[0].weight)
    torch.nn.init.zeros_(task.head[0].bias)
    columns = -(-width // 16)
    cell = torch.arange(height).view(-1, 1) // 16 * columns + torch.arange(width) // 16
    image = cell.float().view(1, 1, height, width)
    assert task.loss((image, torch.ones_like(image, dtype=torch.bool)), generator(1)).item() == 0


@pytest.mark.parametrize(("backbone", "stride"), [("resnet-tiny", 16), ("resnet18", 32)])
@pytest.mark.parametrize("size", [32, 48])
def test_the_head_writes_whole_images_at_the_stride_of_the_backbone(backbone, stride, size, tiny_task, augmentation):
    task = tiny_task("masked", backbone=backbone)
    assert task.head[1].upscale_factor == stride
    images = torch.zeros((2, 3, size, size), dtype=torch.uint8)
    assert task.loss(task.views(images, augmentation, generator(1)), generator(2)).isfinite()


def test_looking_for_the_stride_leaves_the_backbone_as_it_was():
    backbone = build_backbone("resnet-tiny", norm="batch", in_channels=3)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    build_task("masked", backbone, MaskedOptions(), "batch")
    assert backbone.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("size", "patch"), [(32, 4), (48, 8), (64, 8), (96, 16), (128, 16), (192, 32), (224, 32), (256, 32), (384, 64)]
)
def test_squares_are_by_default_about_a_sixth_of_the_image(size, patch):
    assert MaskedOptions().patch_of(size) == patch
    Masked.check(MaskedOptions(), norm="group", batch_size=8, image_size=size, channels=1)


@pytest.mark.parametrize(
    ("options", "size", "match"),
    [
        ({"patch": 7}, 48, "patch = 8"),
        ({}, 47, "multiple of 8 or 12"),
        ({}, 16, "at least 24"),
        ({"patch": 48}, 48, "all 1 squares"),
        ({"mask_ratio": 0.99}, 48, "all 36 squares"),
    ],
)
def test_squares_that_do_not_tile_the_image_or_leave_nothing_are_refused(options, size, match):
    with pytest.raises(InputError, match=match):
        Masked.check(MaskedOptions(**options), norm="group", batch_size=8, image_size=size, channels=3)
