"""Patches and views of CT volumes as MONAI transforms, which compose with MONAI's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.transforms.transform import Transform
from torch import Tensor

from aiseeme_models.images.nifti import is_nifti, nifti_volume
from aiseeme_models.images.nodules import isotropic_patch
from aiseeme_models.images.patch_sets import orthogonal_planes
from aiseeme_models.images.picture import stretch
from aiseeme_models.images.reading import read_bytes
from aiseeme_models.images.volumes import Volume, dicom_volume


class ReadVolume(Transform):
    """The files of one DICOM series, or one DICOM or NIfTI file, to a `Volume` in modality units."""

    def __call__(self, paths: Path | Sequence[Path]) -> Volume:
        """Read ``paths``; raises InputError where they make no volume, ImageRejected where one cannot be decoded."""
        files = [read_bytes(path) for path in ([paths] if isinstance(paths, Path) else paths)]
        if len(files) == 1 and is_nifti(files[0]):
            return nifti_volume(files[0])
        return dicom_volume(files)


class IsotropicPatch(Transform):
    """`Volume` to ``(1, S, S, S)`` float32 in modality units; see `isotropic_patch`."""

    def __init__(self, place: Sequence[float], *, side_mm: float, size: int) -> None:
        self.place, self.side_mm, self.size = tuple(place), side_mm, size

    def __call__(self, volume: Volume) -> Tensor:
        """Cut the patch out of ``volume``."""
        return torch.from_numpy(isotropic_patch(volume, self.place, side_mm=self.side_mm, size=self.size))[None]


class ShowWindow(Transform):
    """Values in modality units to [0, 1]; what lies outside the window is clipped."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, values: Tensor) -> Tensor:
        """Window ``values`` of any shape."""
        return torch.from_numpy(stretch(np.asarray(values), self.low, self.high))


class OrthogonalPlanes(Transform):
    """``(1, S, S, S)`` to the 2.5-D view ``(3, S, S)``: central axial, coronal and sagittal planes."""

    def __call__(self, patch: Tensor) -> Tensor:
        """The three planes of ``patch``."""
        return torch.from_numpy(np.ascontiguousarray(orthogonal_planes(np.asarray(patch)[0]).transpose(2, 0, 1)))
