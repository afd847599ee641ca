"""NIfTI volumes: as pictures, one per axial slice, and as a `Volume` in mm."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.images.picture import (
    MAX_FRAMES,
    MAX_PIXELS,
    ImageFacts,
    Picture,
    ReadOptions,
    size_findings,
    stretch,
)
from aiseeme_models.images.rejection import ImageRejected, RejectReason

if TYPE_CHECKING:
    from aiseeme_models.images.volumes import Volume

MAX_UNPACKED = 2**31
GZIP = b"\x1f\x8b"


def nifti_gz_pictures(data: bytes, options: ReadOptions) -> Iterator[Picture]:
    """`nifti_pictures` of a gzip file; a gzip file of anything else is not an image."""
    yield from nifti_pictures(gunzip(data), options)


def nifti_pictures(data: bytes, options: ReadOptions) -> Iterator[Picture]:
    """The axial slices of a volume from the feet up, as a radiologist sees them: front above, left on the right.

    Without a window in the options, the volume's own range of values is shown, the same for all of its slices.
    """
    values, _ = _canonical(data)  # (X, Y, Z): to the left, to the back, to the head
    low, high = options.window or (float(values.min()), float(values.max()))
    columns, rows, slices = values.shape
    if slices > MAX_FRAMES or rows * columns > MAX_PIXELS:
        raise ImageRejected(RejectReason.TOO_LARGE)
    facts = ImageFacts("", rows, columns, "MONOCHROME2", "NIfTI", 8 * values.itemsize)
    for number in range(slices):
        plane = np.ascontiguousarray(values[:, :, number].T)  # (Y, X)
        yield Picture(number, stretch(plane, low, high), facts, findings=size_findings(rows, columns), samples=plane)


def is_plain_nifti(data: bytes) -> bool:
    """Whether a file that starts so is NIfTI 1 or 2, not compressed."""
    return data[:2] != GZIP and (data[344:348] == b"n+1\0" or data[4:8] == b"n+2\0")


def is_nifti(data: bytes) -> bool:
    """Whether a file that starts so is NIfTI 1 or 2; a gzip file is taken for one."""
    return data[:2] == GZIP or is_plain_nifti(data)


def nifti_volume(data: bytes) -> Volume:
    """The volume of a NIfTI file (gzipped or not) with its place in the patient.

    Raises:
        ImageRejected: it cannot be used.
    """
    from aiseeme_models.images.volumes import Volume

    values, affine = _canonical(gunzip(data) if data[:2] == GZIP else data)
    axes = affine[:3, :3].T  # row i: mm vector (x, y, z) of one step along axis i of (X, Y, Z)
    lengths = np.linalg.norm(axes, axis=1)
    directions = (axes / lengths[:, None])[::-1, ::-1]
    return Volume(
        values=np.ascontiguousarray(values.transpose(2, 1, 0), np.float32),
        spacing=(float(lengths[2]), float(lengths[1]), float(lengths[0])),
        origin=(float(affine[2, 3]), float(affine[1, 3]), float(affine[0, 3])),
        directions=np.ascontiguousarray(directions),
    )


def gunzip(data: bytes) -> bytes:
    """The content of a gzip file of at most `MAX_UNPACKED` bytes.

    Raises:
        ImageRejected: no gzip of a NIfTI file, a truncated one, or one that unpacks to more.
    """
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    plain = unpacker.decompress(data, MAX_UNPACKED)
    if not is_plain_nifti(plain):
        raise ImageRejected(RejectReason.NOT_AN_IMAGE)
    if unpacker.unconsumed_tail:
        raise ImageRejected(RejectReason.TOO_LARGE)
    if not unpacker.eof:
        raise ImageRejected(RejectReason.TRUNCATED)
    return plain


def _canonical(data: bytes) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Values ``(X, Y, Z)`` whose axes grow to the left, to the back and to the head, and their affine to LPS mm."""
    import nibabel
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

    kind = nibabel.Nifti2Image if data[4:8] == b"n+2\0" else nibabel.Nifti1Image
    image = kind.from_bytes(data)
    shape = tuple(int(length) for length in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise ImageRejected(RejectReason.UNSUPPORTED_ENCODING)
    if int(np.prod(shape, dtype=np.int64)) * 4 > MAX_UNPACKED:
        raise ImageRejected(RejectReason.TOO_LARGE)
    if image.dataobj.offset + int(np.prod(shape, dtype=np.int64)) * image.get_data_dtype().itemsize > len(data):
        raise ImageRejected(RejectReason.TRUNCATED)
    values = np.asanyarray(image.dataobj).reshape(shape)
    if values.dtype.kind not in "iuf":
        raise ImageRejected(RejectReason.UNSUPPORTED_ENCODING)
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
        if not np.isfinite(values).all():
            raise ImageRejected(RejectReason.DAMAGED)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(("L", "P", "S")))
    affine = image.affine @ inv_ornt_aff(turn, shape)
    return apply_orientation(values, turn), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # NIfTI counts in RAS
