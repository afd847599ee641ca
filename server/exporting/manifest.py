"""The manifest beside an exported file or folder: what it is, and the model that it was made from."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from aiseeme_models.options import Options
from server.checkpoint_manifest import Sha256
from server.exporting.facts import ExportFacts
from server.signed_files import read_manifest_as

SUFFIX = ".manifest.json"


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or "\0" in path or ".." in parts or str(Path(*parts)) != path:
        raise ValueError("a plain path below the export's own folder was expected")
    return path


def _name(path: str) -> str:
    if "/" in _inside(path):
        raise ValueError("a name without folders was expected")
    return path


Inside = Annotated[str, AfterValidator(_inside)]


class ExportManifest(Options):
    """What an export is.

    Attributes:
        format: version of this layout.
        export_format: the format's name.
        files: SHA-256 of each file by its path: below the folder, or beside this manifest.
        folder: name of the exported folder, or none where a single file was exported.
        parent_sha256: of the bytes of the model's manifest, ``model.json``.
        facts: which model it is, and how images are prepared for it.
    """

    format: Literal[1] = 1
    export_format: str
    files: dict[Inside, Sha256] = Field(min_length=1)
    folder: Annotated[str, AfterValidator(_name)] | None
    parent_sha256: Sha256
    facts: ExportFacts

    def to_bytes(self) -> bytes:
        """As it is written and signed."""
        return json.dumps(self.model_dump(mode="json"), indent=2).encode()


def manifest_of(target: Path) -> Path:
    """Where the manifest of an exported file or folder is."""
    return target.with_name(target.name + SUFFIX)


def read_export_manifest(path: Path) -> tuple[ExportManifest, bytes]:
    """A manifest of an export, and its bytes.

    Raises:
        InputError: it is missing or not what `aiseeme export` writes.
    """
    return read_manifest_as(path, ExportManifest, "an export's manifest")
