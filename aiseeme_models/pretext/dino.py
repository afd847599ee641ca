"""DINO: a student sees any crop of an image and says what its own moving average says of a global one.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021 (arXiv 2104.14294); it
trains ResNets too.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from aiseeme_models.backbones import Backbone, Norm
from aiseeme_models.backbones.norm import norm_1d
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import PretextTask, Recipe, options_of, pretext_tasks
from aiseeme_models.pretext.heads import PrototypeLayer
from aiseeme_models.pretext.momentum import MomentumNetwork, cosine_momentum
from aiseeme_models.pretext.multi_crop import GLOBAL_CROPS, MultiCropOptions, check_crops, encode_crops, multi_crop


class DINOOptions(MultiCropOptions):
    """Options of `DINO`: for small data (ImageNet: momentum 0.996, hidden_dim 2048, output_dim 65536)."""

    momentum: float = Field(0.99, ge=0, le=1, description="momentum of the teacher at the start; 1 at the stage's end")
    student_temperature: float = Field(0.1, gt=0, le=10, description="temperature of the student's softmax")
    first_teacher_temperature: float = Field(0.04, gt=0, le=10, description="the teacher's at the start of the stage")
    teacher_temperature: float = Field(0.07, gt=0, le=10, description="the teacher's after its warm-up")
    teacher_warmup: float = Field(0.3, gt=0, le=1, description="part of the stage in which the teacher's rises")
    centre_momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the centre of the teacher's outputs")
    hidden_dim: int = Field(512, ge=1, description="the two hidden layers of the head")
    bottleneck_dim: int = Field(256, ge=1, description="length of what is compared with the prototypes")
    output_dim: int = Field(1024, ge=2, description="number of prototypes")


def dino_loss(
    students: Tensor, teachers: Tensor, centre: Tensor, student_temperature: float, teacher_temperature: Tensor
) -> Tensor:
    """Cross-entropy between a teacher's view and each other view of its image (eq. 3 of the paper), mean over pairs.

    In float32 also under autocast.

    Args:
        students: ``(B, V, K)``, of each image first the global views.
        teachers: ``(B, G, K)``, of the global views only; no gradient goes through them.
        centre: ``(K,)``, taken off the teachers'.
        student_temperature: divides the students'.
        teacher_temperature: divides the teachers', a scalar.
    """
    with torch.autocast(students.device.type, enabled=False):
        targets = F.softmax((teachers.float() - centre) / teacher_temperature, dim=2)  # (B, G, K)
        logs = F.log_softmax(students.float() / student_temperature, dim=2)  # (B, V, K)
        images, wide, views = len(teachers), teachers.shape[1], students.shape[1]
        others = logs.sum(dim=1, keepdim=True) - logs[:, :wide]  # (B, G, K): all views but the teacher's own
        return -(targets * others).sum() / (images * wide * (views - 1))


class DINOHead(nn.Sequential):
    """Three layers with GELU, length 1, and the prototypes.

    With normalisation, which the authors' code has as an option: without it a ResNet's outputs are at first so alike
    that little is left of them beside the centre.
    """

    def __init__(self, in_dim: int, hidden_dim: int, bottleneck_dim: int, output_dim: int, norm: Norm) -> None:
        normalise = norm_1d(norm)
        super().__init__(
            nn.Linear(in_dim, hidden_dim, bias=False),
            normalise(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim, bias=False),
            normalise(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
            PrototypeLayer(bottleneck_dim, output_dim),
        )

    def forward(self, input: Tensor) -> Tensor:
        """``(B, in_dim)`` to ``(B, output_dim)`` cosines."""
        *layers, prototypes = self
        for layer in layers:
            input = layer(input)
        cosines: Tensor = prototypes(F.normalize(input, dim=1))
        return cosines


class _Local(nn.Module):
    """What DINO keeps at the site."""

    centre: Tensor
    progress: Tensor

    def __init__(self, teacher: MomentumNetwork, dim: int) -> None:
        super().__init__()
        self.teacher = teacher
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("progress", torch.zeros(()))


@pretext_tasks.register("dino")
class DINO(PretextTask):
    """Multi-crop, a student, and a teacher whose outputs are centred and sharpened."""

    family = "non-contrastive"
    paper = "Caron et al. 2021, arXiv 2104.14294"
    recipe = Recipe("sgd", 0.03, 256, 1e-4)  # the authors' command for a ResNet-50
    options_type = DINOOptions
    rederived = ("teacher",)
    comparable_rounds = False  # the loss rises while the centre takes away what all images have in common
    collapses_with = frozenset({"group"})

    local: _Local
    options: DINOOptions

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> DINO:
        """See `PretextTask.build`."""
        options = options_of(DINOOptions, options)
        head = DINOHead(backbone.feature_dim, options.hidden_dim, options.bottleneck_dim, options.output_dim, norm)
        teacher = MomentumNetwork(nn.Sequential(backbone, head))
        task = cls(backbone, head, _Local(teacher, options.output_dim))
        task.options = options
        return task

    @classmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """False: through the centre an image changes the targets of the images of later steps."""
        return False

    @classmethod
    def check(cls, options: Options, *, norm: Norm, batch_size: int, image_size: int, channels: int) -> None:
        """See `PretextTask.check`: with plain group norm the loss of a toy set ended at ln K, with equal features."""
        cls.check_norm("dino", norm)
        check_crops("dino", options_of(DINOOptions, options), image_size)

    def reset_local(self, generator: torch.Generator) -> None:
        """No centre yet, at the beginning of the stage."""
        self.local.centre.zero_()
        self.local.progress.zero_()

    def begin_round(self) -> None:
        """Make the teacher equal to the aggregated student."""
        self.local.teacher.copy_from(self.shared)

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Global and local crops (see `multi_crop`), and the teacher's outputs ``(2B, K)`` for the global ones."""
        wide, small = multi_crop(images, augmentation, generator, self.options)
        return wide, small, self.local.teacher(wide).float()

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Cross-entropy with the teacher."""
        wide, small, teachers = views
        features = encode_crops(self.backbone, wide, small)  # (B, 2 + n, D)
        students = self.head(features.flatten(0, 1)).view(*features.shape[:2], -1)  # (B, 2 + n, K)
        teachers = teachers.view(len(features), GLOBAL_CROPS, -1)  # (B, 2, K)
        options, local = self.options, self.local
        return dino_loss(students, teachers, local.centre, options.student_temperature, self.teacher_temperature())

    def teacher_temperature(self) -> Tensor:
        """Rises along a line: a sharp teacher is unstable only at the start (appendix D)."""
        first, last = self.options.first_teacher_temperature, self.options.teacher_temperature
        risen = (self.local.progress / self.options.teacher_warmup).clamp(max=1)
        return first + (last - first) * risen

    def chance_loss(self, batch_size: int) -> float:
        """ln K: a student that finds all prototypes alike, whatever the teacher says."""
        return math.log(self.options.output_dim)

    @torch.no_grad()
    def after_step(self, views: tuple[Tensor, ...], progress: float) -> None:
        """Move the centre (eq. 4 of the paper), and the teacher ever more slowly."""
        self.local.centre.lerp_(views[-1].mean(dim=0), 1 - self.options.centre_momentum)
        self.local.progress.fill_(progress)
        self.local.teacher.follow(self.shared, cosine_momentum(self.options.momentum, progress))
