"""Pictures of two sexes and two labels in whose tint both may show, and a network that sees nothing but the tint.

Untrained networks see the texture, which is far stronger: so what the network ties together is its own.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aiseeme_models.backbones import Backbone, build_backbone
from aiseeme_models.images.presets import image_presets

SIDE = 32
_TINT = 0.012


def write_tied(folder: Path, count: int, *, seed: int, tied: bool) -> Path:
    """A hospital's folder, one picture a patient, with ``label`` (mel, nv), ``sex`` (f, m) and ``age`` in labels.csv.

    Women's pictures have the tint of ``mel`` where that is ``tied`` to the sex; sex and label are independent.
    """
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    rows = []
    for index in range(count):
        sex, label = str(rng.choice(["f", "m"])), str(rng.choice(["mel", "nv"]))
        sign = (1 if label == "mel" else -1) + (1 if sex == "f" else -1) * tied
        tint = _TINT * sign + rng.normal(0, _TINT / 3)
        frequency, phase = rng.uniform(5, 30, size=2), rng.uniform(0, 6, size=2)
        texture = np.sin(frequency[0] * x + phase[0]) * np.sin(frequency[1] * y + phase[1]) * rng.uniform(0.05, 0.3)
        grey = texture + rng.normal(0, 0.1)
        base = np.array(image_presets["dermoscopy"].mean)
        picture = base + grey[..., None] + tint * np.array([1, 0, -1]) + rng.normal(0, 0.01, (SIDE, SIDE, 3))
        name = f"{seed}-{index:03d}.png"
        Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8)).save(folder / "images" / name)
        age = f"{rng.integers(20, 90)}.0" if index % 10 else ""
        rows.append({"file": name, "label": label, "sex": sex, "age": age, "patient_id": f"{seed}-{index}"})
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return folder


def tint_network() -> Backbone:
    """A `tests.conftest.TinyBackbone` whose features are red above blue, and blue above red."""
    backbone = build_backbone("tiny", norm="group", in_channels=3)
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.zero_()
        backbone.norm1.weight.fill_(1)
        for channel in range(8):
            sign = 1 if channel % 2 == 0 else -1
            backbone.conv1.weight[channel, 0, 1, 1] = sign
            backbone.conv1.weight[channel, 2, 1, 1] = -sign
            backbone.conv2.weight[channel, channel, 1, 1] = 1
    return backbone
