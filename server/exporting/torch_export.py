"""torch.export's ``.pt2``: the graph that PyTorch's compilers take, for AOTInductor and ExecuTorch.

The format is PyTorch's own and its reader may unpickle what is in an archive: nothing here ever loads one that it did
not write itself a moment ago, and a reader elsewhere does well to run `aiseeme verify` first.
"""

from __future__ import annotations

import io
import warnings

import torch

from server.exporting.base import TRACED, Exportable, ExportFormat, export_formats
from server.exporting.facts import KEY

FACTS_FILE = f"{KEY}.json"


def exported(model: Exportable) -> torch.export.ExportedProgram:
    """The backbone's graph with a free batch size, without the folders of the machine that recorded it."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model.network, (model.images(TRACED),), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def render(model: Exportable) -> bytes:
    """The archive; raises RunFailed where it gives other features than the backbone."""
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, about itself
        torch.export.save(exported(model), buffer, extra_files={FACTS_FILE: model.facts.to_json()})
        again = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    model.compare("torch.export program", again)
    return buffer.getvalue()


export_formats.register("torch-export")(ExportFormat(".pt2", render))
