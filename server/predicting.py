"""``aiseeme predict``: what a classifier makes of files, read and prepared as a hospital's are for training."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aiseeme_models.analysis.cam import HEADLESS, activation_maps
from aiseeme_models.analysis.overlay import overlay, with_banner
from aiseeme_models.downstream.classification import ClassificationOptions
from aiseeme_models.downstream.network import ClassifyingNetwork
from aiseeme_models.errors import InputError, RunFailed
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.decode_pool import DecodedFile, DecodedImage, DecodeLimits, DecodePool, DecodeTask
from aiseeme_models.images.presets import ImagePreset
from aiseeme_models.images.rejection import RejectReason
from aiseeme_models.printable import LONGEST_LINE, printable
from server.global_model import load_classifier
from server.model_manifest import MANIFEST_FILE
from server.model_reference import FoundModel
from server.overlay_files import OverlayFiles
from server.predictions import RESEARCH_USE_ONLY, Drawn, LeftOut, Prediction, Predictions

_MOST_IMAGES, _MOST_PIXELS = 64, 64 * 224 * 224
_UNSPECIFIC = frozenset({"", "OT", "OTHER"})
_LONGEST_CAPTION = 40


@dataclass(frozen=True)
class AskedOverlays:
    """Pictures of where the classifier looks.

    Attributes:
        files: where they are written.
        cam: see `activation_maps`.
        of_class: the class whose map is drawn; None: each image's most probable one.
    """

    files: OverlayFiles
    cam: str
    of_class: str | None = None


def check_files(files: Sequence[Path]) -> None:
    """Refuse what is no file before anything is computed.

    Raises:
        InputError: with the first one.
    """
    for path in files:
        if path.is_dir():
            raise InputError(f"{path}: a folder; name the image files in it")
        if not path.is_file():
            raise InputError(f"{path}: no such file")


def classifier_of(model: FoundModel) -> ClassifyingNetwork:
    """The classifier of a finished run, in evaluation mode.

    Raises:
        InputError: the model is none, or its manifest does not fit its configuration or its files.
    """
    manifest = model.manifest
    if manifest.head_sha256 is None:
        raise InputError(f"{model.run}: a backbone without classes; `aiseeme finetune` makes a classifier of it")
    options = model.config.curriculum.stage[-1].options
    if not isinstance(options, ClassificationOptions) or options.names != manifest.classes:
        raise InputError(f"{model.folder / MANIFEST_FILE}: its classes are not those of the run's configuration")
    return load_classifier(model.folder, model.backbone).eval()


def predict(
    model: FoundModel,
    files: Sequence[Path],
    *,
    overlays: AskedOverlays | None = None,
    admitted: frozenset[RejectReason] = frozenset(),
    limits: DecodeLimits = DecodeLimits(),
    device: str = "cpu",
    on_file: Callable[[], None] = lambda: None,
) -> Predictions:
    """Predict every image of ``files``.

    Args:
        model: a classifier.
        files: DICOM, NIfTI, PNG, JPEG, TIFF or npz patch sets: one prediction for each frame, slice, page or patch.
        overlays: pictures to be written beside; None: none.
        admitted: findings that do not keep an image out.
        limits: what one file may cost.
        device: where to compute.
        on_file: called once per file that was read.

    Raises:
        InputError: no such file, no classifier, or no such class or kind of map.
        RunFailed: the model gives something that is no probability.
        OSError: an overlay cannot be written.
    """
    check_files(files)
    network = classifier_of(model)
    if overlays is not None:
        _ = activation_maps[overlays.cam]
        if overlays.of_class is not None and overlays.cam in HEADLESS:
            raise InputError(f"--class {overlays.of_class}: {overlays.cam} is the same for every class")
        if overlays.of_class not in (None, *model.manifest.classes):
            raise InputError(f"--class {overlays.of_class}: there are {', '.join(model.manifest.classes)}")
    work = _Work(model, network.to(device), files, overlays, admitted, device)
    tasks = [DecodeTask(place, path, path.stat().st_size) for place, path in enumerate(files)]
    workers = limits.workers or min(len(files), os.cpu_count() or 1)
    allowed = DecodeLimits(limits.seconds, limits.memory_bytes, workers)
    with DecodePool(model.config.images.pipeline, allowed, admitted) as pool:
        for outcome in pool.decode(tasks, lambda _, image: work.take(image)):
            work.finish(outcome)
            on_file()
    return work.outcome()


class _Work:
    """Images in, predictions out: computed in batches, whichever files they are from."""

    def __init__(
        self,
        model: FoundModel,
        network: ClassifyingNetwork,
        files: Sequence[Path],
        overlays: AskedOverlays | None,
        admitted: frozenset[RejectReason],
        device: str,
    ) -> None:
        self.model, self.network, self.device = model, network, device
        self.names = [printable(str(path), LONGEST_LINE) for path in files]
        self.overlays, self.admitted = overlays, admitted
        self.preset = model.config.images.resolved_preset
        self.normalise = BatchAugmentation.of(self.preset).plain
        self.batch = max(1, min(_MOST_IMAGES, _MOST_PIXELS // model.config.images.size**2))
        self.waiting: dict[tuple[int, int], DecodedImage] = {}
        self.found: defaultdict[int, dict[int, Prediction]] = defaultdict(dict)
        self.left_out: list[LeftOut] = []

    def take(self, image: DecodedImage) -> None:
        """An image whose file may still turn out to be unreadable. Twice the same: its decoder had to begin again."""
        if image.square is None or image.frame in self.found[image.file]:
            return
        self.waiting[image.file, image.frame] = image
        if len(self.waiting) >= self.batch:
            self._compute()

    def finish(self, file: DecodedFile) -> None:
        """A file was read, or cannot be: then nothing stays of the images that came before that was known."""
        if file.reason is not None:
            self.waiting = {key: image for key, image in self.waiting.items() if key[0] != file.number}
            for dropped in self.found.pop(file.number, {}).values():
                if self.overlays is not None and dropped.overlay is not None:
                    self.overlays.files.remove(dropped.overlay.file)
            self._leave_out(file.number, None, (file.reason,))
        for image in file.images:
            self.take(image)
            objections = tuple(reason for reason in image.findings if reason not in self.admitted)
            if objections:
                self._leave_out(file.number, image.frame, objections)

    def outcome(self) -> Predictions:
        """Everything, in the order of the files."""
        self._compute()
        return Predictions(
            run=self.model.run,
            classes=self.model.manifest.classes,
            images=tuple(found for _, one in sorted(self.found.items()) for _, found in sorted(one.items())),
            left_out=tuple(sorted(self.left_out, key=lambda one: (one.position, one.frame or 0))),
        )

    def _leave_out(self, place: int, frame: int | None, reasons: tuple[RejectReason, ...]) -> None:
        self.left_out.append(
            LeftOut(
                file=self.names[place],
                position=place + 1,
                frame=frame,
                reasons=reasons,
                sentences=tuple(reason.sentence for reason in reasons),
                quarantined=all(reason.is_policy for reason in reasons),
            )
        )

    def _compute(self) -> None:
        """Predict what waits."""
        if not self.waiting:
            return
        images, self.waiting = list(self.waiting.values()), {}
        squares = np.stack([image.square for image in images if image.square is not None])  # (B, C, S, S)
        normalised = self.normalise(torch.from_numpy(squares).to(self.device))
        with torch.no_grad():
            probabilities = self.network(normalised).double().cpu()  # (B, K)
        if not bool(probabilities.isfinite().all()):
            raise RunFailed(f"{self.model.run}: the model gives something that is no probability")
        classes = probabilities.argmax(dim=1)  # (B,)
        maps: Sequence[NDArray[np.float32] | None] = [None] * len(images)
        if self.overlays is not None:
            if self.overlays.of_class is not None:
                classes = torch.full_like(classes, self.model.manifest.classes.index(self.overlays.of_class))
            cam = activation_maps[self.overlays.cam]
            heat = cam(self.network.backbone, self.network.fc, normalised, classes.to(self.device))  # (B, h, w)
            maps = list(heat.cpu().numpy())
        for image, row, place, one in zip(images, probabilities.tolist(), classes.tolist(), maps, strict=True):
            self.found[image.file][image.frame] = self._prediction(image, row, place, one)

    def _prediction(
        self, image: DecodedImage, row: list[float], shown: int, heat: NDArray[np.float32] | None
    ) -> Prediction:
        """One image's, with the overlay of the class at the place ``shown``."""
        manifest = self.model.manifest
        assert image.square is not None and manifest.head_sha256 is not None
        warnings = _warnings(image, image.square, self.preset)
        drawn = None
        if self.overlays is not None and heat is not None:
            kind, name = self.overlays.cam, manifest.classes[shown]
            if not heat.any():
                warnings.append(f"nothing in it speaks for {name}: the map is 0 everywhere")
            caption = printable(f"{kind}, {name} {row[shown]:.3f}", _LONGEST_CAPTION)
            picture = overlay(image.square, heat, apart=self.preset.orthogonal)
            file = self.overlays.files.write(
                image.file, image.frame, with_banner(picture, (RESEARCH_USE_ONLY, caption))
            )
            drawn = Drawn(file=file, cam=kind, of_class=None if kind in HEADLESS else name)
        return Prediction(
            file=self.names[image.file],
            position=image.file + 1,
            frame=image.frame,
            predicted=manifest.classes[row.index(max(row))],
            probabilities=dict(zip(manifest.classes, row, strict=True)),
            calibrated=manifest.temperature is not None,
            temperature=manifest.temperature,
            model_sha256=manifest.sha256,
            head_sha256=manifest.head_sha256,
            findings=image.findings,
            saturated=image.saturated,
            warnings=tuple(warnings),
            overlay=drawn,
        )


def _warnings(image: DecodedImage, square: NDArray[np.uint8], preset: ImagePreset) -> list[str]:
    """What of an image is not as the model knows it. Words of DICOM's own lists, nothing that was free text."""
    found = [reason.sentence for reason in image.findings]
    modality = image.facts.modality
    if preset.modalities and modality not in preset.modalities | _UNSPECIFIC:
        usual = ", ".join(sorted(preset.modalities))
        found.append(f"its modality is {modality}; the model was trained on {preset.name} images ({usual})")
    if len(square) > 1 and (square == square[:1]).all():
        lacking = "one plane, not three orthogonal ones" if preset.orthogonal else "it has no colour"
        found.append(f"{lacking}; the model was trained on {preset.name} images")
    return found
