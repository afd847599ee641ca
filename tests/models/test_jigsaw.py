"""Jigsaw: the permutations are far apart and the same at every hospital, and the puzzle is what its answer says."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist

from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.augmentation_options import AugmentationOptions
from aiseeme_models.pretext.jigsaw import Jigsaw, JigsawOptions, permutation_set
from aiseeme_models.seeding import generator

AS_IT_IS = BatchAugmentation(AugmentationOptions(), mean=(0.0,) * 3, std=(1.0,) * 3)


def distances(permutations):
    places = (permutations[:, None] != permutations[None]).sum(dim=2)
    return places[~torch.eye(len(permutations), dtype=torch.bool)]


def test_the_permutations_are_those_of_the_greedy_choice_written_out():
    every = np.array(list(itertools.permutations(range(9))))
    chosen = every[:1]
    while len(chosen) < 11:
        apart = np.rint(9 * cdist(chosen, every, metric="hamming"))  # (k, 9!)
        nearest, mean = apart.min(axis=0), apart.mean(axis=0)
        best = np.lexsort((np.arange(len(every)), -mean, -nearest))[0]
        chosen = np.concatenate([chosen, every[best : best + 1]])
    assert np.array_equal(permutation_set(11).numpy(), chosen)


def test_any_two_of_the_permutations_differ_in_at_least_six_places_and_use_all_places_alike():
    permutations = permutation_set(100)
    assert torch.equal(permutations.sort(dim=1).values, torch.arange(9).expand(100, 9))
    assert int(distances(permutations).min()) == 6
    assert float(distances(permutations).float().mean()) > 8
    for place in range(9):
        assert all(10 <= count <= 12 for count in torch.bincount(permutations[:, place], minlength=9).tolist())


def test_a_smaller_set_is_the_start_of_a_larger_one_and_every_hospital_has_the_same():
    permutations = permutation_set(100)
    assert torch.equal(permutation_set(10), permutations[:10])
    # What a class means: with another set, hospitals of two versions would train one head for two meanings.
    digest = hashlib.sha256(permutations.numpy().astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("445417e7e25bdf9d")


def test_the_patches_stand_in_the_order_that_the_answer_names(tiny_task):
    cells = torch.arange(9).view(3, 3).repeat_interleave(16, 0).repeat_interleave(16, 1)  # (48, 48)
    images = (28 * cells).to(torch.uint8).expand(200, 3, 48, 48)
    patches, _, puzzles = tiny_task("jigsaw", permutations=20).views(images, AS_IT_IS, generator(1))
    assert patches.shape == (1800, 3, 12, 12)
    shown = (patches * 255 / 28).round().long().flatten(1)
    assert torch.equal(shown.min(dim=1).values, shown.max(dim=1).values)
    assert torch.equal(shown[:, 0].view(200, 9), permutation_set(20)[puzzles])
    assert set(puzzles.tolist()) == set(range(20))


def test_the_loss_is_that_of_patches_encoded_one_by_one(tiny_task, toy_images, augmentation):
    task = tiny_task("jigsaw", permutations=7, patch_dim=5, hidden_dim=11)
    patches, whole, puzzles = task.views(toy_images(3).pixels, augmentation, generator(1))
    layer, norm, classifier = task.head[0], task.head[1], task.head[-1]
    total = torch.zeros(())
    for image in range(3):
        parts = []
        for place in range(9):
            feature = task.backbone(patches[9 * image + place : 9 * image + place + 1])
            projected = feature @ layer.weight.T
            parts.append(F.relu(F.layer_norm(projected, (5,), norm.weight, norm.bias)))
        hidden = F.layer_norm(torch.cat(parts, dim=1) @ classifier[0].weight.T, (11,))
        logits = (F.relu(hidden) @ classifier[3].weight.T + classifier[3].bias)[0]
        total = total - (logits[puzzles[image]] - logits.exp().sum().log()) / 3
    loss = task.loss((patches, whole, puzzles), generator(2))
    assert loss.item() == pytest.approx(total.item(), abs=1e-5)
    weights = [task.backbone.conv1.weight, layer.weight, classifier[3].weight]
    for own, other in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(total, weights), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["jigsaw", "relative-location"])
def test_colours_are_dropped_from_whole_images_as_often_as_asked(name, tiny_task):
    images = torch.randint(0, 256, (300, 3, 48, 48), generator=generator(5), dtype=torch.uint8)

    def coloured(**options):
        patches = tiny_task(name, **options).views(images, AS_IT_IS, generator(1))[0].unflatten(0, (300, 9))
        return (patches.amax(dim=2) - patches.amin(dim=2) > 1e-3).flatten(2).any(dim=2)  # (300, 9)

    assert coloured().all()
    some = coloured(grayscale_p=0.3)
    assert torch.equal(some.any(dim=1), some.all(dim=1)), "an image's patches are grey together"
    assert 0.6 < float(some.float().mean()) < 0.8
    assert not coloured(grayscale_p=1.0).any()


def test_an_image_too_small_for_a_grid_is_refused():
    with pytest.raises(InputError, match="jigsaw cuts an image into a 3x3 grid.*at least 48"):
        Jigsaw.check(JigsawOptions(), norm="group", batch_size=8, image_size=47, channels=1)
    Jigsaw.check(JigsawOptions(), norm="group", batch_size=8, image_size=48, channels=1)
