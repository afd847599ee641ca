"""Classification as a stage of a federation: a backbone and a linear head learn the sites' own labels.

It is trained by the loop, carried by the rounds and kept by the checkpoints of the pretext tasks, so that all they
promise holds for it too. What it needs beyond them are labels, which never leave a site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from aiseeme_models.backbones import Backbone, Norm
from aiseeme_models.downstream.ccl import CCLOptions
from aiseeme_models.downstream.class_weights import class_weightings
from aiseeme_models.downstream.features import ImageSource, Normalise, normalised_batches
from aiseeme_models.downstream.losses import batch_loss, class_sums, image_losses
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.labels import OF_NO_CLASS
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import PretextTask, options_of

Values = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Mode = Literal["finetune", "linear", "bn-tune"]
MOST_CLASSES = 64
_LIGHTEST = 0.01


class ClassificationOptions(Options):
    """Options of `Classification`."""

    classes: dict[str, Values] = Field(
        min_length=2, max_length=MOST_CLASSES, description="each class, and the labels that mean it"
    )
    column: str = Field("label", min_length=1, description="the column of labels.csv that holds the labels")
    mode: Mode = Field(
        "finetune", description="trained beside the head: finetune: all; bn-tune: the norm layers; linear: nothing"
    )
    head: Literal["global", "personal"] = Field(
        "global", description="personal: every site has a linear layer of its own, which stays there"
    )
    labels: float = Field(1.0, gt=0, le=1, description="share of each site's labelled patients whose images are used")
    weights: str = Field("frequency", description="class weights: frequency, inverse, effective-number or none")
    gamma: float = Field(0.0, ge=0, le=10, description="focal loss: how much less an image counts that is recognised")
    sampling: Literal["shuffled", "balanced"] = Field(
        "shuffled", description="balanced: every class equally often in an epoch"
    )
    ccl: CCLOptions | None = Field(None, description="class-wise curriculum: which classes are let in, and when")

    @model_validator(mode="after")
    def _clear(self) -> Self:
        class_weightings[self.weights]
        seen: dict[str, str] = {}
        for name, values in self.classes.items():
            for value in values:
                if value in seen:
                    raise InputError(f"classes: {value!r} means both {seen[value]!r} and {name!r}")
                seen[value] = name
        if self.column in OF_NO_CLASS:
            raise InputError(f"column: {self.column!r} says whose an image is, which nobody learns")
        hard = None if self.ccl is None else self.ccl.difficulties
        if hard is not None and hard.keys() != self.classes.keys():
            raise InputError(f"ccl.difficulties: there must be one of each class: {', '.join(self.classes)}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, in the order of the head's outputs: that of the alphabet, however a file has them."""
        return tuple(sorted(self.classes))

    @property
    def class_of(self) -> Mapping[str, int]:
        """The place of the class that each label means."""
        return {value: place for place, name in enumerate(self.names) for value in self.classes[name]}


class Classification(PretextTask):
    """A linear layer on pooled features, trained by (weighted, focal, class-wise curricular) cross-entropy.

    Before a round it is told the classes of the images by `learn`, and what each class counts by `pace`.
    """

    family = "supervised"
    paper = "Sirotkin et al. 2021, arXiv 2112.12086 (the project's downstream task)"
    recipe = None
    options_type = ClassificationOptions

    options: ClassificationOptions

    def __init__(self, backbone: Backbone, options: ClassificationOptions) -> None:
        super().__init__(backbone, nn.Linear(backbone.feature_dim, len(options.classes)))
        self.options = options
        self._targets = torch.zeros(0, dtype=torch.long)
        self._rows: Tensor | None = None
        self._weights = torch.ones(len(options.classes))
        self._admitted: Tensor | None = None
        self._sums = torch.zeros(len(options.classes), dtype=torch.float64)
        self._counts = torch.zeros(len(options.classes), dtype=torch.long)
        trained = _trained(backbone, options.mode)
        for parameter in backbone.parameters():
            parameter.requires_grad_(parameter in trained)
        states = self.shared.state_dict(keep_vars=True).items()
        # Statistics follow what is trained: they move wherever a norm layer does.
        still = frozenset(
            name
            for name, tensor in states
            if name.startswith("backbone.")
            and (tensor not in trained if isinstance(tensor, nn.Parameter) else options.mode == "linear")
        )
        heads = frozenset(name for name, _ in states if name.startswith("head."))
        self._frozen = still | heads if options.head == "personal" else still

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> Classification:
        """See `PretextTask.build`."""
        return cls(backbone, options_of(ClassificationOptions, options))

    @classmethod
    def check(cls, options: Options, *, norm: Norm, batch_size: int, image_size: int, channels: int) -> None:
        """See `PretextTask.check`."""
        if norm == "batch-local":
            raise InputError(
                "a classifier for all sites needs statistics for all of them: model.norm = 'batch-local' keeps them at"
                " the sites; use 'batch', 'group' or 'group-ws'"
            )

    @classmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """False: class weights are relative to the batch's other images, unless they are all the same."""
        return False

    @classmethod
    def privacy_obstacle(cls, options: Options, norm: Norm) -> str | None:
        """See `PretextTask.privacy_obstacle`."""
        return (
            "is not accounted for with labels: pretrain under [privacy], and leave the table out where the labels are"
            " learnt"
        )

    def is_frozen(self, name: str) -> bool:
        """See `PretextTask.is_frozen`."""
        return name in self._frozen

    def learn(self, targets: Tensor) -> None:
        """Say of which class each image is that `look_at` points at next: ``(N,)`` int64."""
        self._targets = targets

    def pace(self, counts: Sequence[int] | None, admitted: Sequence[bool] | None) -> None:
        """Say what each class counts in the rounds that follow.

        Args:
            counts: ``C`` training images of each class, over all sites; None: all classes weigh the same.
            admitted: ``C``, which classes are in; None: all.
        """
        classes = len(self.options.classes)
        weighting = class_weightings[self.options.weights]
        weights = torch.ones(classes) if counts is None or not sum(counts) else weighting(torch.tensor(counts))
        # No class outweighs another so far that a held-out loss would be that of a few images alone.
        self._weights = weights.clamp(min=_LIGHTEST * float(weights.max()))
        self._admitted = None if admitted is None else torch.tensor(admitted)

    def class_losses(self) -> tuple[list[float], list[int]]:
        """Of each class, the sum of the cross-entropies of a round's training images and their number.

        Not weighted and of all classes, those that are not in too: what CCL calls difficulty.
        """
        return self._sums.tolist(), self._counts.tolist()

    def begin_round(self) -> None:
        """See `PretextTask.begin_round`."""
        self._sums.zero_()
        self._counts.zero_()

    def train(self, mode: bool = True) -> Self:
        """Training mode; a backbone that is not trained stays as it is, its batch statistics too."""
        super().train(mode)
        if self.options.mode == "linear":
            self.backbone.eval()
        return self

    def look_at(self, indices: Tensor | None) -> None:
        """See `PretextTask.look_at`."""
        self._rows = indices

    def look_at_heldout(self, indices: Tensor) -> None:
        """See `PretextTask.look_at_heldout`."""
        self._rows = indices

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """One view of each image ``(B, C, H, W)``, and its class ``(B,)`` int64.

        Random views in training; as they are where the features are frozen, and of held-out images.
        """
        if self._rows is None:
            raise InputError("classification: nobody said of which class these images are")
        plain = self.options.mode == "linear" or not self.training
        view = augmentation.plain(images) if plain else augmentation(images, generator)
        return view, self._targets[self._rows].to(images.device)

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """The batch's loss; in training the classes' own are remembered for `class_losses`."""
        images, targets = views
        logits: Tensor = self.head(self.backbone(images))
        if self.training and self.options.ccl is not None:
            sums, counts = class_sums(image_losses(logits.detach(), targets), targets, logits.shape[1])
            self._sums += sums.cpu()
            self._counts += counts.cpu()
        admitted = None if self._admitted is None else self._admitted.to(targets.device)
        losses = image_losses(logits, targets, gamma=self.options.gamma)
        return batch_loss(losses, targets, self._weights.to(targets.device), admitted)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` float32 normalised images to ``(B, classes)`` float64 probabilities."""
        return self.head(self.backbone(images)).double().softmax(dim=1)  # type: ignore[no-any-return]

    def chance_loss(self, batch_size: int) -> float | None:
        """``(1 - 1 / C)^gamma ln C``; None under a class-wise curriculum, where the classes that are in change."""
        classes = len(self.options.classes)
        return None if self.options.ccl is not None else (1 - 1 / classes) ** self.options.gamma * math.log(classes)


def predicted(
    task: Classification, images: ImageSource, normalise: Normalise, *, device: torch.device | str
) -> NDArray[np.float64]:
    """A classifier's probabilities of every image, ``(N, C)`` float64, in evaluation mode.

    Args:
        task: moved to ``device``, its mode is put back at the end.
        images: ``N`` images, none too.
        normalise: ``(B, C, S, S)`` uint8 on ``device`` to float32 of the same shape, without randomness.
        device: where to compute.
    """
    was_training = task.training
    task.to(device).eval()
    parts = [np.zeros((0, len(task.options.classes)))]
    try:
        for batch in normalised_batches(images, normalise, device=device):
            parts.append(task.probabilities(batch).cpu().numpy())
    finally:
        task.train(was_training)
    return np.concatenate(parts)


def _trained(backbone: Backbone, mode: Mode) -> set[nn.Parameter]:
    """The backbone's parameters that are trained; with ``bn-tune`` those of the layers that are no convolution.

    Sirotkin et al. 2024, "Batch Norm tuning" (Applied Intelligence, 10.1007/s10489-024-05758-7).
    """
    if mode == "finetune":
        return set(backbone.parameters())
    if mode == "linear":
        return set()
    norms = (nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
    layers = (layer for layer in backbone.modules() if isinstance(layer, norms))
    return {parameter for layer in layers for parameter in layer.parameters()}
