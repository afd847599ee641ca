"""Patch sets: an npz file with an array ``images``, as nodule data sets are published and as `nodules` writes them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.images.picture import MAX_PIXELS, ImageFacts, Picture, Pixels, ReadOptions, size_findings, stretch
from aiseeme_models.images.rejection import ImageRejected, RejectReason

MEMBER = "images"
MAX_PATCHES = 200_000
MAX_UNPACKED = 2**31


def patch_pictures(data: bytes, options: ReadOptions) -> Iterator[Picture]:
    """Every patch of the array ``images``: ``(N, H, W)``, ``(N, H, W, 3)`` or ``(N, D, H, W)``.

    uint8 patches are shown as they are; deeper ones by the window of the options, else by the range of the set. Of a
    3-D patch the central axial plane is taken or, if the options say so, the three orthogonal central planes.
    """
    patches = read_patches(data)
    channels = patches.ndim == 4 and patches.shape[-1] == 3
    low, high = options.window or (float(patches.min()), float(patches.max()))
    rows, columns = patches.shape[1:3] if channels or patches.ndim == 3 else patches.shape[2:4]
    photometric = "RGB" if channels else "MONOCHROME2"
    facts = ImageFacts("", rows, columns, photometric, "patch set", 8 * patches.itemsize)
    findings = size_findings(rows, columns)
    for number, patch in enumerate(patches):
        plane = (
            patch if channels or patch.ndim == 2 else (orthogonal_planes(patch) if options.orthogonal else axial(patch))
        )
        shown: Pixels = plane if plane.dtype == np.uint8 else stretch(plane, low, high)
        yield Picture(number, shown, facts, findings=findings, samples=patch)


def read_patches(data: bytes) -> NDArray[Any]:
    """The array ``images`` of an npz file, never unpickled.

    Raises:
        ImageRejected: no such array, one of another kind, or one that is too large.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    if f"{MEMBER}.npy" not in sizes:
        raise ImageRejected(RejectReason.NOT_AN_IMAGE)
    if sizes[f"{MEMBER}.npy"] > MAX_UNPACKED:
        raise ImageRejected(RejectReason.TOO_LARGE)
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        patches: NDArray[Any] = arrays[MEMBER]
    if patches.ndim not in (3, 4) or patches.dtype.kind not in "iuf" or 0 in patches.shape:
        raise ImageRejected(RejectReason.UNSUPPORTED_ENCODING)
    if len(patches) > MAX_PATCHES or patches[0].size > MAX_PIXELS:
        raise ImageRejected(RejectReason.TOO_LARGE)
    if patches.dtype.kind == "f" and not np.isfinite(patches).all():
        raise ImageRejected(RejectReason.DAMAGED)
    return patches


def axial(patch: NDArray[Any]) -> NDArray[Any]:
    """The central axial plane ``(H, W)`` of a patch ``(D, H, W)``."""
    plane: NDArray[Any] = patch[patch.shape[0] // 2]
    return plane


def orthogonal_planes(patch: NDArray[Any]) -> NDArray[Any]:
    """The 2.5-D view ``(S, S, 3)`` of a cube ``(S, S, S)``: central axial, coronal and sagittal planes as channels.

    Raises:
        ImageRejected: the patch is no cube.
    """
    depth, height, width = patch.shape
    if not depth == height == width:
        raise ImageRejected(RejectReason.UNSUPPORTED_ENCODING)
    middle = depth // 2
    planes: NDArray[Any] = np.stack([patch[middle], patch[:, middle], patch[:, :, middle]], axis=-1)
    return planes
