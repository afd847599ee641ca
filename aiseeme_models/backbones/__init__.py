"""Image encoders whose weights are pretrained: a registry of ResNets with a choice of normalisation."""

from aiseeme_models.backbones import resnet  # noqa: F401  (registers its backbones)
from aiseeme_models.backbones.base import Backbone, backbones, build_backbone
from aiseeme_models.backbones.initialise import initialise
from aiseeme_models.backbones.norm import PER_IMAGE_NORMS, Norm

__all__ = ["PER_IMAGE_NORMS", "Backbone", "Norm", "backbones", "build_backbone", "initialise"]
