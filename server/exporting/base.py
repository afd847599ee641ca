"""What a format is: bytes made of a backbone, which were read back and gave what the backbone gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from aiseeme_models.backbones import Backbone
from aiseeme_models.downstream.network import ClassifyingNetwork
from aiseeme_models.errors import RunFailed
from aiseeme_models.registry import Registry
from aiseeme_models.seeding import generator
from server.exporting.facts import ExportFacts

TOLERANCE = 1e-5
"""Largest deviation of exported features from the backbone's, in units of the largest feature (at least 1)."""

TRACED, CHECKED = 2, (1, 3)
"""Images in the batch that a graph is recorded with, and in those that it is checked with: others, on purpose."""


@dataclass(frozen=True)
class Exportable:
    """A network that is to be exported: a backbone, or a whole classifier.

    Attributes:
        network: on the CPU, in evaluation mode, without gradients.
        facts: what the file will say of itself.
        card: the run's model card, Markdown.
    """

    network: Backbone | ClassifyingNetwork
    facts: ExportFacts
    card: str

    @property
    def state(self) -> dict[str, Tensor]:
        """Its weights under torchvision's names: the backbone's, and of a classifier ``fc.weight`` and ``fc.bias``."""
        tensors = self.network.state_dict().items()
        return {name.removeprefix("backbone."): value.contiguous() for name, value in tensors}

    def images(self, batch: int) -> Tensor:
        """``(batch, C, S, S)`` float32, always the same normal noise."""
        preparation = self.facts.preprocessing
        shape = (batch, preparation.channels, preparation.size, preparation.size)
        return torch.randn(shape, generator=generator(0, "export", batch))

    def compare(self, name: str, features: Callable[[Tensor], Tensor]) -> None:
        """Hold what was exported against the network, on batches of sizes that it was not recorded with.

        Raises:
            RunFailed: it gives something else.
        """
        for batch in CHECKED:
            images = self.images(batch)
            with torch.no_grad():
                expected, found = self.network(images), features(images)
            if found.shape != expected.shape:
                raise RunFailed(f"the exported {name} gives {tuple(found.shape)} where {tuple(expected.shape)} is due")
            scale = max(1.0, expected.abs().max().item())
            deviation = (found - expected).abs().max().item() / scale
            if not deviation <= TOLERANCE:  # also where it is no number
                raise RunFailed(
                    f"the exported {name} deviates from the model by {deviation:.1e} of its largest feature;"
                    f" {TOLERANCE:.0e} is allowed, so it was not written"
                )


Rendered = bytes | Mapping[str, bytes]
"""The bytes of a file, or of a folder's files by their relative path."""


@dataclass(frozen=True)
class ExportFormat:
    """A way to write a backbone.

    Attributes:
        suffix: of its file's name; "" for a folder.
        render: makes and checks the bytes. Raises RunFailed where the check fails.
    """

    suffix: str
    render: Callable[[Exportable], Rendered]


export_formats: Registry[ExportFormat] = Registry("export format")
