"""ONNX, for every runtime that is not PyTorch."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor

from aiseeme_models.errors import RunFailed
from server.exporting.base import Exportable, ExportFormat, export_formats
from server.exporting.facts import KEY
from server.exporting.torch_export import exported

INPUT, FEATURES, PROBABILITIES = "images", "features", "probabilities"


def render(model: Exportable) -> bytes:
    """One self-contained file with a free batch size, which onnx's checker accepts.

    Where onnxruntime is installed, it computes features with it too.

    Raises:
        RunFailed: the checker refuses it, or its features are not the backbone's.
    """
    import onnx

    output = PROBABILITIES if model.facts.classes else FEATURES
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, about itself
        program = torch.onnx.export(
            exported(model), dynamo=True, input_names=[INPUT], output_names=[output], external_data=False, verbose=False
        )
    if program is None:
        raise RunFailed("torch made no ONNX program of this backbone")
    proto = program.model_proto
    _without_traces(proto)
    proto.producer_name, proto.doc_string = KEY, f"model of run {model.facts.run}"
    fact = proto.metadata_props.add()
    fact.key, fact.value = KEY, model.facts.to_json()
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RunFailed(f"onnx's checker refuses the exported file: {error}") from error
    payload: bytes = proto.SerializeToString()
    if importlib.util.find_spec("onnxruntime") is not None:
        model.compare("ONNX file", _runtime(payload, output))
    return payload


def _without_traces(proto: Any) -> None:
    """Take out what torch notes beside every node: module paths and the folders of the machine."""
    for part in (proto.graph, *proto.functions):
        for node in part.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in part.value_info:
            del value.metadata_props[:]
        del part.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]


def _runtime(payload: bytes, output: str) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(payload, providers=["CPUExecutionProvider"])

    def features(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([output], {INPUT: images.numpy()})[0])

    return features


export_formats.register("onnx")(ExportFormat(".onnx", render))
