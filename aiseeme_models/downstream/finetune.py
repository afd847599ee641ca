"""Fine-tuning: the whole network on labelled images, from a backbone that the caller keeps as it is."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from aiseeme_models.backbones import Backbone
from aiseeme_models.downstream.class_weights import one_less_frequency
from aiseeme_models.downstream.features import ImageSource, normalised_batches
from aiseeme_models.downstream.losses import batch_loss, image_losses
from aiseeme_models.downstream.metrics import ProbeScore, score_predictions
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.options import Options
from aiseeme_models.seeding import generator
from aiseeme_models.training.optimizers import build_optimizer
from aiseeme_models.training.schedules import learning_rate_factor


class FineTuneOptions(Options):
    """How a backbone is fine-tuned.

    Attributes:
        fraction: share of the labelled training patients whose images are used, see `labelled_subset`.
        epochs: passes over those images.
        batch_size: images a step; all of them where there are fewer.
        lr: AdamW's learning rate at the start, from which it falls to 0 along a cosine.
        weight_decay: AdamW's, of matrices only.
    """

    fraction: float = Field(default=1.0, gt=0, le=1)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=32, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)


def fine_tune(
    backbone: Backbone,
    train_images: ImageSource,
    train_y: Sequence[str],
    train_patients: Sequence[str],
    test_images: ImageSource,
    test_y: Sequence[str],
    options: FineTuneOptions,
    *,
    augmentation: BatchAugmentation,
    seed: int,
    device: torch.device | str,
    test_patients: Sequence[str] | None = None,
) -> ProbeScore:
    """Train a copy of ``backbone`` with a linear head on labelled images, and score it on the test images.

    Random views as in pretraining, cross-entropy with the class weights of `one_less_frequency`, and no choice of an
    epoch by any held-out score: the last one counts. The same arguments give the same bits on the same machine with the
    same number of threads.

    Args:
        backbone: where it starts; not changed.
        train_images: ``N`` images.
        train_y: ``N`` labels.
        train_patients: ``N`` patients (or lesions), whom a ``fraction`` below 1 takes or leaves whole.
        test_images: ``M`` images of other patients.
        test_y: ``M`` labels.
        options: how.
        augmentation: random views for training, its `plain` for the test.
        seed: of subset, head, order and views.
        device: where to compute.
        test_patients: ``M`` patients, whom the figures' intervals resample; None: no intervals.

    Raises:
        InputError: no training or no test images, lengths that differ, or a training that diverged.
    """
    _check(len(train_images), train_y, train_patients, len(test_images), test_y)
    chosen = labelled_subset(train_y, train_patients, options.fraction, seed)
    labels = [train_y[index] for index in chosen]
    names = sorted(set(labels))
    if len(names) == 1:
        return score_predictions(
            labels, test_y, [names[0]] * len(test_y), np.zeros((len(test_y), 0)), [], patients=test_patients
        )
    network = _Classifier(copy.deepcopy(backbone), len(names), generator(seed, "fine-tune", "head")).to(device)
    target = torch.tensor([names.index(label) for label in labels])  # (n,)
    _train(network, train_images, torch.tensor(chosen), target, options, augmentation, seed, torch.device(device))
    probabilities = _probabilities(network, test_images, augmentation, device)
    predicted = [names[index] for index in probabilities.argmax(axis=1)]
    return score_predictions(labels, test_y, predicted, probabilities, names, patients=test_patients)


def labelled_subset(labels: Sequence[str], patients: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Positions of the images of a share of the patients of each class, in rising order.

    A patient belongs to the class of most of his images (of a tie, to the one that sorts first) and comes with all of
    them, whatever their class. Of each class ``fraction`` of the patients are taken, rounded up, so that none is left
    without. The subsets of one seed are nested: a larger fraction adds patients and takes none away.

    Args:
        labels: ``N`` labels.
        patients: ``N`` patients.
        fraction: in (0, 1].
        seed: draws the patients.
    """
    positions: dict[str, list[int]] = {}
    for index, patient in enumerate(patients):
        positions.setdefault(patient, []).append(index)
    of_class: dict[str, list[str]] = {}
    for patient in sorted(positions):
        own = sorted(labels[index] for index in positions[patient])
        of_class.setdefault(max(own, key=own.count), []).append(patient)
    chosen: list[int] = []
    for label, members in sorted(of_class.items()):
        order = torch.randperm(len(members), generator=generator(seed, "labelled", label)).tolist()
        wanted = -int(-(fraction * len(members)) // 1)  # rounded up
        chosen += [index for member in order[:wanted] for index in positions[members[member]]]
    return sorted(chosen)


class _Classifier(nn.Module):
    """A backbone with a linear layer on its pooled features."""

    def __init__(self, backbone: Backbone, classes: int, seeded: torch.Generator) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_()
        self.head = nn.Linear(backbone.feature_dim, classes)
        with torch.no_grad():
            self.head.weight.normal_(0.0, 0.01, generator=seeded)
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, S, S)`` float32 to logits ``(B, classes)``."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


def _train(
    network: _Classifier,
    images: ImageSource,
    chosen: Tensor,
    target: Tensor,
    options: FineTuneOptions,
    augmentation: BatchAugmentation,
    seed: int,
    device: torch.device,
) -> None:
    counts = torch.bincount(target, minlength=network.head.out_features)
    weight = one_less_frequency(counts).to(device)
    optimizer = build_optimizer("adamw", network, lr=options.lr, weight_decay=options.weight_decay, momentum=0.9)
    views = generator(seed, "fine-tune", "views")
    batch = min(options.batch_size, len(chosen))
    per_epoch = len(chosen) // batch  # a last incomplete batch is dropped, as in pretraining
    network.train()
    for step in range(options.epochs * per_epoch):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = torch.randperm(len(chosen), generator=generator(seed, "fine-tune", "order", epoch))
        rows = order[place * batch : (place + 1) * batch]  # (B,)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * learning_rate_factor("cosine", 0.0, step / (options.epochs * per_epoch))
        optimizer.zero_grad(set_to_none=True)
        logits = network(augmentation(images.batch(chosen[rows]).to(device), views))
        truth = target[rows].to(device)
        loss = batch_loss(image_losses(logits, truth), truth, weight)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    last = float(loss.detach())
    if last - last != 0:  # NaN and both infinities
        raise InputError(f"fine-tuning diverged: its last loss is {last}; a lower lr than {options.lr} may help")


@torch.inference_mode()
def _probabilities(
    network: _Classifier, images: ImageSource, augmentation: BatchAugmentation, device: torch.device | str
) -> NDArray[np.float64]:
    network.eval()
    parts = []
    for batch in normalised_batches(images, augmentation.plain, device=device):
        logits = network(batch)
        parts.append(logits.double().softmax(dim=1).cpu().numpy())
    return np.concatenate(parts)


def _check(train: int, train_y: Sequence[str], train_patients: Sequence[str], test: int, test_y: Sequence[str]) -> None:
    if not train or not test:
        raise InputError("fine-tuning: there must be labelled training and test images; more patients are needed")
    if not (train == len(train_y) == len(train_patients)) or test != len(test_y):
        raise InputError(
            f"fine-tuning: {train} training images with {len(train_y)} labels and {len(train_patients)} patients, "
            f"{test} test images with {len(test_y)} labels"
        )
