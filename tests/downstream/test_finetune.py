"""Fine-tuning learns from whole patients, weighs rare classes up, and leaves the backbone as it was."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from aiseeme_models.backbones.initialise import initialise
from aiseeme_models.downstream import finetune
from aiseeme_models.downstream.finetune import FineTuneOptions, fine_tune, labelled_subset
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.augmentation_options import AugmentationOptions
from aiseeme_models.seeding import generator
from tests.conftest import TinyBackbone

AUGMENTATION = BatchAugmentation(AugmentationOptions(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Stripes:
    """Pictures of lying and standing stripes of random phase: no pixel by itself tells which."""

    def __init__(self, n: int, seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        self.labels = ["lying" if index % 3 else "standing" for index in range(n)]
        self.patients = [f"patient-{seed}-{index // 2 // 3 * 3 + index % 3}" for index in range(n)]
        ramp = torch.arange(32) * 1.2
        waves = torch.sin(ramp + 6 * torch.rand(n, 1, generator=draws))  # (n, 32)
        lying = torch.tensor([label == "lying" for label in self.labels]).view(n, 1, 1)
        pattern = torch.where(lying, waves[:, :, None], waves[:, None, :])  # (n, 32, 32)
        noise = 20 * torch.randn(n, 3, 32, 32, generator=draws)
        self.pixels = (128 + 80 * pattern[:, None] + noise).clamp(0, 255).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]


def backbone(norm: str = "batch", seed: int = 0) -> TinyBackbone:
    made = TinyBackbone(norm, 3)
    initialise(made, generator(seed, "backbone"))
    return made


def tuned(options: FineTuneOptions, *, seed: int = 1, start: TinyBackbone | None = None):
    train, test = Stripes(120, 1), Stripes(60, 2)
    return fine_tune(
        start or backbone(),
        train,
        train.labels,
        train.patients,
        test,
        test.labels,
        options,
        augmentation=AUGMENTATION.upright(),
        seed=seed,
        device="cpu",
    )


def test_it_learns_what_the_images_show():
    score = tuned(FineTuneOptions(epochs=12, batch_size=20, lr=0.02))
    assert score.balanced_accuracy > 0.95
    assert score.macro_auc is not None and score.macro_auc > 0.98
    assert (score.n_train, score.n_test) == (120, 60)


def test_the_same_seed_gives_the_same_score_to_the_bit_and_another_seed_another():
    options = FineTuneOptions(epochs=1, batch_size=20, lr=2e-5)  # barely trained: no score is perfect
    first, again, other = tuned(options), tuned(options), tuned(options, seed=2)
    assert first == again
    assert first.macro_auc != other.macro_auc


def test_global_random_state_has_no_say():
    options = FineTuneOptions(epochs=1, batch_size=20)
    torch.manual_seed(1)
    first = tuned(options)
    torch.manual_seed(2)
    torch.rand(7)
    assert tuned(options) == first


def test_the_backbone_is_left_as_it_was():
    start = backbone()
    before = {name: value.clone() for name, value in start.state_dict().items()}
    start.eval()
    tuned(FineTuneOptions(epochs=1, batch_size=20), start=start)
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    assert not start.training and all(weight.grad is None for weight in start.parameters())


def test_every_weight_of_the_backbone_is_trained():
    train = Stripes(20, 3)
    network = finetune._Classifier(backbone(), 2, generator(5, "head"))
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    target = torch.tensor([label == "standing" for label in train.labels]).long()
    options = FineTuneOptions(epochs=1, batch_size=10)
    finetune._train(network, train, torch.arange(20), target, options, AUGMENTATION, 9, torch.device("cpu"))
    still = [name for name, weight in network.named_parameters() if torch.equal(weight, before[name])]
    assert still == []


def test_one_step_descends_the_weighted_cross_entropy():
    """With one step of AdamW every weight of the head moves by the learning rate against the sign of its gradient."""
    train = Stripes(12, 3)
    target = torch.tensor([label == "standing" for label in train.labels]).long()
    start = backbone("group")
    network = finetune._Classifier(start, 2, generator(5, "head"))
    options = FineTuneOptions(epochs=1, batch_size=12, lr=1e-3, weight_decay=0.0)
    before = network.head.bias.detach().clone()
    views = AUGMENTATION(
        train.pixels[torch.randperm(12, generator=generator(9, "fine-tune", "order", 0))],
        generator(9, "fine-tune", "views"),
    )
    rows = torch.randperm(12, generator=generator(9, "fine-tune", "order", 0))
    probabilities = network(views).softmax(1).detach()
    weight = [1 - 8 / 12, 1 - 4 / 12]  # 8 lying, 4 standing
    total = sum(weight[int(label)] for label in target[rows])
    slope = [0.0, 0.0]
    for row, label in enumerate(target[rows].tolist()):
        for c in range(2):
            slope[c] += weight[label] / total * (float(probabilities[row, c]) - (c == label))
    finetune._train(network, train, torch.arange(12), target, options, AUGMENTATION, 9, torch.device("cpu"))
    moved = network.head.bias.detach() - before
    for c in range(2):
        assert float(moved[c]) == pytest.approx(-1e-3 * math.copysign(1, slope[c]), rel=1e-3)


def population() -> tuple[list[str], list[str]]:
    """100 patients of one to three images: 70 of a, 25 of b, 5 of c."""
    labels, patients = [], []
    for number in range(100):
        label = "a" if number < 70 else "b" if number < 95 else "c"
        for _ in range(1 + number % 3):
            labels.append(label)
            patients.append(f"p{number:03d}")
    return labels, patients


def test_a_tenth_of_the_patients_is_a_tenth_of_each_class_and_never_half_a_patient():
    labels, patients = population()
    chosen = labelled_subset(labels, patients, 0.1, seed=3)
    taken = {patients[index] for index in chosen}
    assert chosen == [index for index, patient in enumerate(patients) if patient in taken]  # whole patients
    assert Counter(dict(zip(patients, labels, strict=True))[patient] for patient in taken) == {"a": 7, "b": 3, "c": 1}


def test_subsets_of_a_seed_are_nested_and_those_of_another_differ():
    labels, patients = population()
    small, large = (set(labelled_subset(labels, patients, share, seed=3)) for share in (0.1, 0.5))
    assert small < large < set(range(len(labels)))
    assert labelled_subset(labels, patients, 1.0, seed=3) == list(range(len(labels)))
    assert set(labelled_subset(labels, patients, 0.1, seed=4)) != small


def test_the_subset_does_not_depend_on_the_order_of_the_images():
    labels, patients = population()
    turned = labelled_subset(labels[::-1], patients[::-1], 0.1, seed=3)
    assert {patients[::-1][index] for index in turned} == {
        patients[index] for index in labelled_subset(labels, patients, 0.1, seed=3)
    }


def test_the_fraction_is_what_trains():
    assert tuned(FineTuneOptions(fraction=0.1, epochs=1, batch_size=20)).n_train < 30


def test_one_class_gives_the_constant_answer():
    train, test = Stripes(12, 1), Stripes(12, 2)
    score = fine_tune(
        backbone(), train, ["lying"] * 12, train.patients, test, test.labels, FineTuneOptions(epochs=1),
        augmentation=AUGMENTATION, seed=0, device="cpu",
    )  # fmt: skip
    assert (score.balanced_accuracy, score.macro_auc) == (0.5, None)


def test_a_training_that_diverges_says_so():
    with pytest.raises(InputError, match="diverged"):
        tuned(FineTuneOptions(epochs=4, batch_size=20, lr=1e30))


def test_missing_images_and_labels_are_refused():
    train = Stripes(12, 1)
    with pytest.raises(InputError, match="12 training images with 11 labels"):
        fine_tune(
            backbone(), train, train.labels[1:], train.patients, train, train.labels, FineTuneOptions(),
            augmentation=AUGMENTATION, seed=0, device="cpu",
        )  # fmt: skip
