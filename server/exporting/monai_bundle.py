"""A MONAI bundle: metadata, an inference configuration in MONAI's own transforms, and the model without a pickle.

The bundle specification asks for ``models/model.pt``, a pickled state dict. None is written: loading a pickle runs
what its author put in. ``models/backbone.safetensors`` and ``models/model.ts`` (TorchScript, read by libtorch alone)
hold the same weights.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from server.exporting import safetensors_file, torchscript
from server.exporting.base import Exportable, ExportFormat, export_formats
from server.exporting.facts import ExportFacts, Preprocessing

# As the cache's pipeline has it; a test holds the two against each other.
REDUCING_GAP = 3.0

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"

USE = """
## Use of this bundle

With `monai` and, for its command line, `fire` installed:

```
python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\
    --images "['one.png']" --output {what}.npy
```

writes {what} as an array of shape (images, {dim}). There is no `models/model.pt`, whose pickle runs what its author
put in: `models/backbone.safetensors` holds the plain weights, and reading it runs nothing. `models/model.ts` is the
TorchScript graph: `aiseeme verify` shows that it is the one that was exported. {input}
"""


def render(model: Exportable) -> dict[str, bytes]:
    """The bundle's files; raises RunFailed where the model in it gives other features than the backbone."""
    preparation = model.facts.preprocessing
    what = "probabilities" if model.facts.classes else "features"
    columns = len(model.facts.classes) or model.facts.feature_dim
    use = USE.format(what=what, dim=columns, input=_expected(preparation))
    return {
        "configs/metadata.json": _json(metadata(model)),
        "configs/inference.json": _json(inference(preparation, f"{what}.npy")),
        "models/model.ts": torchscript.render(model),
        "models/backbone.safetensors": safetensors_file.render(model),
        "docs/README.md": (model.card.rstrip() + "\n" + use).encode(),
    }


def metadata(model: Exportable) -> dict[str, Any]:
    """``configs/metadata.json`` after MONAI's bundle specification, with our facts beside its keys."""
    facts, preparation = model.facts, model.facts.preprocessing
    task, made = _purpose(facts)
    side = [preparation.size, preparation.size]
    colours = ("axial", "coronal", "sagittal") if preparation.orthogonal else ("red", "green", "blue")
    names = ("grey",) if preparation.channels == 1 else colours
    shared = {"modality": "CT" if preparation.window else "n/a", "dtype": "float32", "is_patch_data": False}
    lowest = min((0 - mean) / std for mean, std in zip(preparation.mean, preparation.std, strict=True))
    highest = max((1 - mean) / std for mean, std in zip(preparation.mean, preparation.std, strict=True))
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported from run {facts.run}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in ("pillow", "pydicom")},
        "name": facts.name,
        "task": task,
        "description": f"{facts.backbone} {made} the federation {facts.name}; see docs/README.md",
        "authors": f"the sites of the federation {facts.name}",
        "copyright": f"the sites of the federation {facts.name}",
        "intended_use": "research only; not for diagnosis",
        "network_data_format": {
            "inputs": {
                "image": shared
                | {
                    "type": "image",
                    "format": "hounsfield" if preparation.window else "magnitude",
                    "num_channels": preparation.channels,
                    "spatial_shape": side,
                    "value_range": [round(lowest, 4), round(highest, 4)],
                    "channel_def": {str(index): name for index, name in enumerate(names)},
                }
            },
            "outputs": {
                "pred": shared
                | {
                    "type": "probabilities" if facts.classes else "tuples",
                    "format": "classes" if facts.classes else "latent",
                    "num_channels": len(facts.classes) or facts.feature_dim,
                    "spatial_shape": [],
                    "value_range": [0, 1] if facts.classes else [],
                    "channel_def": {str(place): name for place, name in enumerate(facts.classes)} or {"0": "features"},
                }
            },
        },
        "aiseeme": facts.model_dump(mode="json"),
    }


def _purpose(facts: ExportFacts) -> tuple[str, str]:
    """What the model is for, and how the federation made it."""
    if facts.classes:
        return "image classification", "fine-tuned by"
    if facts.learns_labels:
        return (
            "image features (backbone of the sites' own classifiers)",
            "of classifiers whose heads stay at the sites of",
        )
    return "image features (self-supervised backbone)", "pretrained without labels by"


def inference(preparation: Preprocessing, output: str = "features.npy") -> dict[str, Any]:
    """``configs/inference.json``: paths of images in, an array of features or probabilities out."""
    return {
        "imports": ["$import numpy", "$import torch", "$from PIL import Image", "$from PIL import ImageOps"],
        "bundle_root": ".",
        "images": [],
        "output": output,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "preprocessing": {"_target_": "Compose", "transforms": _transforms(preparation)},
        "network": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device).eval()",
        "batch": "$torch.stack(list(map(@preprocessing, @images)))",
        "features": "$@network(@batch.to(@device)).cpu().numpy()",
        "run": ["$numpy.save(@output, @features)"],
    }


def _transforms(preparation: Preprocessing) -> list[dict[str, Any]]:
    size = preparation.size
    windowed = preparation.window is not None
    first = _hounsfield(preparation, size) if windowed else _picture(preparation, size)
    return [
        *first,
        {
            "_target_": "NormalizeIntensity",
            "subtrahend": list(preparation.mean),
            "divisor": list(preparation.std),
            "channel_wise": True,
        },
        {"_target_": "EnsureType", "dtype": "$torch.float32", "track_meta": False},
    ]


def _picture(preparation: Preprocessing, size: int) -> list[dict[str, Any]]:
    """Pictures: Pillow makes the square, with the very arguments that it had for the training."""
    mode = "L" if preparation.channels == 1 else "RGB"
    resize = f"Image.Resampling.BILINEAR, reducing_gap={REDUCING_GAP}"
    if preparation.fit == "crop":
        square = (
            "(lambda image, side: image.crop((left := (image.width - side) // 2, top := (image.height - side) // 2,"
            f" left + side, top + side)).resize(({size}, {size}), {resize}))"
        )
        extent = "min"
    else:
        square = (
            f"(lambda image, side: image.resize([max(1, round(length * ({size} / side))) for length in image.size],"
            f" {resize}))"
        )
        extent = "max"
    upright = f"ImageOps.exif_transpose(image).convert('{mode}')"
    return [
        {
            "_target_": "LoadImage",
            "reader": "PILReader",
            "converter": f"$lambda image: {square}({upright}, {extent}(image.size))",
            "reverse_indexing": False,
            "image_only": True,
            "ensure_channel_first": True,
        },
        {"_target_": "ScaleIntensityRange", "a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1, "clip": True},
        {"_target_": "ResizeWithPadOrCrop", "spatial_size": [size, size]},
    ]


def _hounsfield(preparation: Preprocessing, size: int) -> list[dict[str, Any]]:
    """CT: windowed in HU, then squared."""
    assert preparation.window is not None
    low, high = preparation.window
    longest, shortest = "max(image.shape[-2:])", "min(image.shape[-2:])"
    factor = f"({size} / {longest if preparation.fit == 'pad' else shortest})"
    resize = (
        "$lambda image: torch.nn.functional.interpolate(image.as_tensor()[None],"
        f" [max(1, round(side * {factor})) for side in image.shape[-2:]],"
        " mode='bilinear', antialias=True)[0]"
    )
    return [
        *(_patch() if preparation.orthogonal else _slice(preparation.channels)),
        {"_target_": "ScaleIntensityRange", "a_min": low, "a_max": high, "b_min": 0, "b_max": 1, "clip": True},
        {"_target_": "Lambda", "func": resize},
        {"_target_": "ResizeWithPadOrCrop", "spatial_size": [size, size]},
        {"_target_": "Lambda", "func": "$lambda image: (image * 255).round() / 255"},
    ]


def _slice(channels: int) -> list[dict[str, Any]]:
    load = {
        "_target_": "LoadImage",
        "reader": "PydicomReader",
        "swap_ij": False,
        "image_only": True,
        "ensure_channel_first": True,
    }
    return [load, {"_target_": "Lambda", "func": f"$lambda image: image.squeeze()[None].expand({channels}, -1, -1)"}]


def _patch() -> list[dict[str, Any]]:
    planes = (
        "$lambda patch: torch.stack([patch[patch.shape[0] // 2], patch[:, patch.shape[1] // 2],"
        " patch[:, :, patch.shape[2] // 2]])"
    )
    load = {"_target_": "LoadImage", "reader": "NumpyReader", "image_only": True}
    return [load, {"_target_": "Lambda", "func": planes}]


def _expected(preparation: Preprocessing) -> str:
    if preparation.orthogonal:
        return "Images are cubic patches in HU, arrays (z, y, x) in .npy files."
    if preparation.window is not None:
        return "Images are single CT slices, DICOM files."
    return (
        "Images are pictures of 8 bits (PNG, JPEG, TIFF). DICOM files have a display rule of their own: write them as"
        " pictures first, or use `aiseeme_models.images.preprocessing`."
    )


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"


export_formats.register("monai")(ExportFormat("", render))
