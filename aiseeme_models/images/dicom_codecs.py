"""Decoders for DICOM that pydicom has no plug-in for under a licence that a product can ship.

libjpeg-turbo 3 (through imagecodecs) decodes every JPEG process that files in hospitals use: 8 and 12 bits, baseline,
extended and progressive, and lossless up to 16 bits. libjxl decodes JPEG XL, zlib deflated frames. JPEG 2000, JPEG-LS
and RLE are left to pydicom's own plug-ins for pylibjpeg-openjpeg, pyjpegls and pylibjpeg-rle.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder

_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
DECODER_DEPENDENCIES = dict.fromkeys(_JPEG, ("imagecodecs",))
"""Part of the plug-in interface of pydicom 3."""

_PLUGIN = "aiseeme-imagecodecs"


def is_available(syntax: uid.UID) -> bool:
    """Part of the plug-in interface of pydicom 3."""
    return syntax in DECODER_DEPENDENCIES


def decode_jpeg_frame(source: bytes, runner: DecodeRunner) -> memoryview:
    """The frame that pydicom asks for, samples interleaved, little endian; see the interface of its plug-ins."""
    array = imagecodecs.jpeg8_decode(source)
    _check_shape(array, runner.rows, runner.columns, runner.samples_per_pixel)
    if array.ndim == 3:
        runner.set_option("planar_configuration", 0)
        if runner.photometric_interpretation.startswith("YBR"):  # libjpeg has converted it
            runner.set_option("photometric_interpretation", "RGB")
    runner.set_option("bits_allocated", 8 * array.itemsize)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data.cast("B")


def install() -> None:
    """Make pydicom use `decode_jpeg_frame`, after any other plug-in it has."""
    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if _PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(_PLUGIN, (__name__, "decode_jpeg_frame"))


def _jxl(frame: bytes, dataset: Dataset) -> bytes:
    return _little_endian(imagecodecs.jpegxl_decode(frame), dataset)


def _jpeg(frame: bytes, dataset: Dataset) -> bytes:
    return _little_endian(imagecodecs.jpeg8_decode(frame), dataset)


def _inflated(frame: bytes, dataset: Dataset) -> bytes:
    """A frame of "Deflated Image Frame Compression": a raw RFC 1951 stream, at most as long as its header says."""
    bits = int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel) * int(dataset.BitsAllocated)
    expected = -(-bits // 8)
    plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, expected + 1)
    if len(plain) < expected:
        raise EOFError("a deflated frame is truncated")
    return plain[:expected]


FRAME_CODECS: dict[str, Callable[[bytes, Dataset], bytes]] = {
    "1.2.840.10008.1.2.4.53": _jpeg,  # spectral selection, retired
    "1.2.840.10008.1.2.4.55": _jpeg,  # full progression, retired
    "1.2.840.10008.1.2.4.110": _jxl,
    "1.2.840.10008.1.2.4.111": _jxl,
    "1.2.840.10008.1.2.4.112": _jxl,
    "1.2.840.10008.1.2.8.1": _inflated,
}
"""Transfer syntaxes that pydicom has no decoder for: from one encoded frame to native little-endian bytes."""

ENCODING_NAMES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}
"""Names of transfer syntaxes that pydicom's dictionary does not have."""


def make_native(dataset: Dataset) -> None:
    """Replace the encoded frames of one of `FRAME_CODECS` by native ones, in place."""
    codec = FRAME_CODECS[str(dataset.file_meta.TransferSyntaxUID)]
    count = int(dataset.get("NumberOfFrames") or 1)
    frames = [codec(frame, dataset) for frame in generate_frames(dataset.PixelData, number_of_frames=count)]
    dataset.PixelData = _packed(frames, dataset) if int(dataset.BitsAllocated) == 1 else b"".join(frames)
    dataset["PixelData"].is_undefined_length = False
    dataset["PixelData"].VR = "OW" if int(dataset.BitsAllocated) > 8 else "OB"
    if int(dataset.SamplesPerPixel) == 3:
        dataset.PlanarConfiguration = 0
        if str(dataset.PhotometricInterpretation).startswith(("YBR", "XYB")) and codec is not _inflated:
            dataset.PhotometricInterpretation = "RGB"
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian


def _packed(frames: list[bytes], dataset: Dataset) -> bytes:
    """Frames of single bits, each of whole bytes, as DICOM stores them natively: without a gap between frames."""
    pixels = int(dataset.Rows) * int(dataset.Columns)
    bits = [np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")[:pixels] for frame in frames]
    packed = np.packbits(np.concatenate(bits), bitorder="little").tobytes()
    return packed + b"\0" * (len(packed) % 2)


def _little_endian(array: NDArray[np.generic], dataset: Dataset) -> bytes:
    _check_shape(array, int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel))
    dataset.BitsAllocated = 8 * array.itemsize
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _check_shape(array: NDArray[np.generic], rows: int, columns: int, samples: int) -> None:
    expected = (rows, columns) if samples == 1 else (rows, columns, samples)
    if array.shape != expected:
        raise ValueError("the encoded frame is of another size than the header says")
