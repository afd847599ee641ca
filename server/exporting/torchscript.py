"""TorchScript: a graph with its weights, for libtorch, MONAI and Python without this package."""

from __future__ import annotations

import io
import warnings
import zipfile

import torch

from server.exporting.base import TRACED, Exportable, ExportFormat, export_formats
from server.exporting.facts import KEY

FACTS_FILE = f"{KEY}.json"


def render(model: Exportable) -> bytes:
    """A traced graph, for batches of any size; raises RunFailed where it gives other features than the backbone."""
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # Shapes inside the norms become constants of the graph, which is right: the channels do not change.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model.network, model.images(TRACED), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, buffer, _extra_files={FACTS_FILE: model.facts.to_json()})
        payload = _without_source_paths(buffer.getvalue())
        again = torch.jit.load(io.BytesIO(payload), map_location="cpu")  # type: ignore[no-untyped-call]
    model.compare("TorchScript", again)
    return payload


def _without_source_paths(archive: bytes) -> bytes:
    """The same archive without its debug records, which name the folders of the machine that made it."""
    copy = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as new:
        for record in old.infolist():
            if not record.filename.endswith(".debug_pkl"):
                new.writestr(zipfile.ZipInfo(record.filename), old.read(record))
    return copy.getvalue()


export_formats.register("torchscript")(ExportFormat(".ts", render))
