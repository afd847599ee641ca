"""A finished run's backbone in the formats that other software reads; one file per format."""

from server.exporting import (  # noqa: F401  (registers its format)
    monai_bundle,
    onnx_file,
    safetensors_file,
    torch_export,
    torchscript,
)
from server.exporting.base import Exportable, ExportFormat, export_formats

__all__ = ["ExportFormat", "Exportable", "export_formats"]
