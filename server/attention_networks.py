"""The networks whose attention is looked at: each with the head whose logits Grad-CAM follows, and true classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

from aiseeme_models.downstream.classification import ClassificationOptions
from aiseeme_models.downstream.features import extract_features
from aiseeme_models.downstream.logistic import fit_logistic
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from client.stage_images import labelled_rows
from federation_configs.downstream import learns_labels
from server.global_model import backbone_sha256, load_classifier, new_backbone
from server.probing import ready_backbone

if TYPE_CHECKING:
    from aiseeme_models.backbones import Backbone
    from aiseeme_models.images.cached_images import CachedImages
    from client.scanning import CatalogueRow
    from federation_configs.schema import FederationConfig
    from server.model_reference import FoundModel

Kind = Literal["pretrained", "classifier", "untrained"]


@dataclass(frozen=True)
class TrainingImages:
    """What heads are fitted to: images of nobody who is looked at.

    Attributes:
        images: all of them.
        rows: the catalogue's row of each.
    """

    images: CachedImages
    rows: list[CatalogueRow]


@dataclass(frozen=True)
class LookingNetwork:
    """A network that is asked where it looks.

    Attributes:
        model: the run, or of which run it is the untrained start.
        kind: what it is.
        head_from: whose logits a map follows, in words; None: the map follows none.
        config: says how images become its input.
        backbone: in any mode.
        head: from pooled features to logits.
        classes: what the logits stand for.
    """

    model: str
    kind: Kind
    head_from: str | None
    config: FederationConfig
    backbone: Backbone
    head: nn.Module
    classes: tuple[str, ...]

    def targets(self, rows: Sequence[CatalogueRow]) -> list[int | None]:
        """The place of each image's true class among the logits, None where it is unknown."""
        place = {name: index for index, name in enumerate(self.classes)}
        return [None if name is None else place.get(name) for name in true_classes(self.config, rows)]


def networks_of(
    models: Sequence[FoundModel],
    training: TrainingImages,
    *,
    headless: bool,
    untrained: bool,
    device: str,
    say: Callable[[str], None],
) -> list[LookingNetwork]:
    """The networks of some runs, in order, and after them the untrained backbones that they began with.

    A classifier has its own head. A backbone without one gets that of a linear probe on the labelled training images.

    Args:
        models: finished runs.
        training: what probes are fitted to.
        headless: the maps follow no logit, so nothing is fitted.
        untrained: add each different untrained backbone.
        device: where features are computed.
        say: told what is being done.

    Raises:
        InputError: a probe is needed and the training images are of fewer than two classes.
    """
    found = []
    for model in models:
        if model.manifest.head_sha256 is not None:
            network = load_classifier(model.folder, model.backbone)
            classes = _options(model.config).names
            found.append(
                LookingNetwork(
                    model.run, "classifier", "its own head", model.config, network.backbone, network.fc, classes
                )
            )
        else:
            found.append(
                _probed(model.run, "pretrained", model.config, model.backbone, training, headless, device, say)
            )
    if untrained:
        starts: dict[str, tuple[FoundModel, Backbone]] = {}
        for model in models:
            start = new_backbone(model.config)
            starts.setdefault(backbone_sha256(start), (model, start))
        found += [
            _probed(f"untrained {model.run}", "untrained", model.config, start, training, headless, device, say)
            for model, start in starts.values()
        ]
    return found


def true_classes(config: FederationConfig, rows: Sequence[CatalogueRow]) -> list[str | None]:
    """Each image's class: of a classifier's run the one that its label means there, else the label itself."""
    if not learns_labels(config):
        return [row.label for row in rows]
    options = _options(config)
    found: list[str | None] = [None] * len(rows)
    for place, target in zip(*labelled_rows(rows, options), strict=True):
        found[place] = options.names[target]
    return found


def _options(config: FederationConfig) -> ClassificationOptions:
    options = config.curriculum.stage[0].options
    assert isinstance(options, ClassificationOptions)
    return options


def _probed(
    model: str,
    kind: Kind,
    config: FederationConfig,
    backbone: Backbone,
    training: TrainingImages,
    headless: bool,
    device: str,
    say: Callable[[str], None],
) -> LookingNetwork:
    backbone = ready_backbone(config, backbone, training.images, device=device)
    if headless:
        return LookingNetwork(model, kind, None, config, backbone, nn.Identity(), ())
    classes = true_classes(config, training.rows)
    places = [place for place, name in enumerate(classes) if name is not None]
    labels = [name for name in classes if name is not None]
    if len(set(labels)) < 2:
        raise InputError(
            f"{model}: Grad-CAM of a backbone without a head fits one to labelled training images, and they are of"
            f" {len(set(labels))} classes; give a folder with labels.csv, or take --cam eigen-cam, which needs none"
        )
    say(f"fitting a linear probe on {len(labels)} labelled images, as the head of {model}")
    plain = BatchAugmentation.of(config.images.resolved_preset).plain
    features = extract_features(backbone, training.images.only(places), plain, device=device)
    fitted = fit_logistic(features, labels, seed=config.seed)
    return LookingNetwork(model, kind, "linear probe", config, backbone, fitted.layer(), tuple(fitted.names))
