"""Finished runs of classifiers, made without training, and pictures to predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image
from pydicom.uid import VLPhotographicImageStorage

from aiseeme_models.images.augmentation import BatchAugmentation
from server.checkpoints import CheckpointStore
from server.global_model import save_head, task_of
from server.model_manifest import read_model_manifest
from server.signed_files import MODEL, write_signed
from tests.images.dicom_files import write_dicom_file
from tests.server.finished_runs import finished_run, run_config

RUN, COLD, PLAIN = "20261201-120000-aaaaaa", "20261201-120000-bbbbbb", "20261202-120000-cccccc"
CHEST, NODULES = "chest", "nodules"
CLASSES = ("akiec", "mel", "nv")
TEMPERATURE = 1.7
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SKIN = {"preset": "dermoscopy", "size": 32}
PHOTO = {"SOPClassUID": VLPhotographicImageStorage, "Modality": "XC"}


def classifiers(home: Path) -> None:
    """A calibrated and signed classifier, one that nobody calibrated, two of other images, and a backbone."""
    classifier(home, RUN, temperature=TEMPERATURE, key=KEY)
    classifier(home, COLD, temperature=None)
    classifier(home, CHEST, temperature=1.0, images={"preset": "chest-xray", "size": 32})
    classifier(home, NODULES, temperature=1.0, images={"preset": "ct-nodule", "size": 32})
    finished_run(home, run_config(model={"backbone": "resnet-tiny"}), run=PLAIN)


def classifier(home: Path, run: str, *, temperature: float | None, images: dict[str, Any] = SKIN, key: Any = None):
    """A finished run of a classifier whose head tells images apart, made without training."""
    options = {"classes": {name: [name] for name in CLASSES}}
    stage = {"task": "classification", "rounds": 1, "batch_size": 4, "options": options}
    config = run_config(images=images, model={"backbone": "resnet-tiny"}, curriculum={"stage": [stage]})
    folder = finished_run(home, config, run=run, key=key)
    task = task_of(config, 0, CheckpointStore(folder / "checkpoints").load(1).vector)
    _tell_apart(task, config.images)
    head = save_head(folder / "model", task.head)
    manifest, _ = read_model_manifest(folder / "model")
    told = manifest.model_copy(update={"head_sha256": head, "classes": CLASSES, "temperature": temperature})
    write_signed(folder / "model" / "model.json", told.to_bytes(), MODEL, key)


def _tell_apart(task: Any, images: Any) -> None:
    """A random head whose logits of noise have mean 0 and deviation 1.5: no probability is nearly 0 or 1."""
    random = torch.Generator().manual_seed(1)
    shape = (16, *images.pipeline.shape[:1], 4, 4)
    noise = torch.nn.functional.interpolate(255 * torch.rand(shape, generator=random), images.size, mode="bicubic")
    with torch.no_grad():
        views = BatchAugmentation.of(images.resolved_preset).plain(noise.clamp(0, 255).to(torch.uint8))
        features = task.backbone.eval()(views)  # (16, D)
        weight = torch.randn(task.head.weight.shape, generator=random)
        weight *= 1.5 / ((features - features.mean(0)) @ weight.T).std()
        task.head.weight.copy_(weight)
        task.head.bias.copy_(-weight @ features.mean(0))


def drawn(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    """``(H, W, 3)`` uint8: coarse noise, so that images differ at the model's size too."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def png(path: Path, seed: int, **size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn(seed, **size)).save(path)
    return path


def frames_in(kind: str, tmp_path: Path, frames: list[np.ndarray]) -> Path:
    if kind == "DICOM":
        every = np.stack(frames).tobytes()
        return write_dicom_file(tmp_path / "image.dcm", frames[0], NumberOfFrames=len(frames), PixelData=every, **PHOTO)
    path = tmp_path / f"many.{kind}"
    if kind == "npz":
        np.savez(path, images=np.stack(frames))
    else:
        first, *rest = map(Image.fromarray, frames)
        first.save(path, save_all=True, append_images=rest)
    return path
