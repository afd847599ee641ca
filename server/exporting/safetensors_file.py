"""Plain tensors under torchvision's parameter names, with the facts in the file's header."""

from __future__ import annotations

from safetensors.torch import save

from aiseeme_models.errors import RunFailed
from server.exporting.base import Exportable, ExportFormat, export_formats
from server.exporting.facts import KEY
from server.weights_file import tensors_in


def render(model: Exportable) -> bytes:
    """The network's state dict; raises RunFailed unless every tensor comes back bit for bit."""
    state = model.state
    payload = save(state, metadata={"format": "pt", KEY: model.facts.to_json()})
    again = tensors_in(payload, "the exported safetensors file")
    same = again.keys() == state.keys() and all(again[name].equal(value) for name, value in state.items())
    if not same:
        raise RunFailed("the exported safetensors file does not hold the model's weights")
    return payload


export_formats.register("safetensors")(ExportFormat(".safetensors", render))
