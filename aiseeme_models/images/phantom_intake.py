"""A phantom hospital's export with every case that intake meets: formats, encodings, quarantines, damage.

Every patient is invented and has a folder named after the patient, as exports have; nothing in it is medical.
"""

from __future__ import annotations

import csv
import io
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence

from aiseeme_models.images.phantom_lesions import LESION_PATTERNS, phantom_lesion
from aiseeme_models.images.phantom_radiographs import RADIOGRAPH_PATTERNS, phantom_radiograph
from aiseeme_models.images.rejection import RejectReason

ACCEPTED = "accepted"
NODULES = "nodules.csv"
_SIZE = 96
_JXL, _DEFLATED_FRAME, _PROGRESSIVE = "1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.4.55"
# pydicom does not write the syntaxes that its dictionary lacks: files are written as another one of the same length.
_STAND_INS = {_JXL: uid.HTJ2KLossless, _DEFLATED_FRAME: uid.JPEGBaseline8Bit}
_CT_SLICES, _CT_SPACING = 24, (2.5, 1.5, 1.5)


def write_mixed_phantoms(folder: Path, seed: int) -> dict[str, list[str]]:
    """Write one hospital's folder; equal seeds give equal images and headers.

    Args:
        folder: must be there and empty.
        seed: of everything random.

    Returns:
        For every file, by its path below ``folder``: the outcomes that its images may have under the default policy,
        ``"accepted"`` or reasons.
    """
    return _Writer(folder, seed).everything()


class _Writer:
    """Draws and writes the files one after the other."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.rng = np.random.default_rng((seed, 77))
        self.expected: dict[str, list[str]] = {}
        self.patients = 0

    def everything(self) -> dict[str, list[str]]:
        """All cases."""
        self._encodings()
        self._photometrics()
        self._tables()
        self._frames()
        self._quarantine()
        self._pictures()
        self._volumes()
        self._damage()
        return self.expected

    def _encodings(self) -> None:
        """Every transfer syntax that can be written with what is installed."""
        for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian):
            self._save(self._grey(), f"native-{syntax[-3:].strip('.')}", syntax=syntax)
        big = self._grey()
        big.PixelData = np.frombuffer(big.PixelData, "<u2").astype(">u2").tobytes()
        self._save(big, "big-endian", syntax=uid.ExplicitVRBigEndian)
        for syntax in (uid.RLELossless, uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.JPEG2000Lossless, uid.JPEG2000):
            dataset = self._grey()
            options: dict[str, Any] = {"jls_error": 2} if syntax == uid.JPEGLSNearLossless else {}
            options |= {"j2k_psnr": [60]} if syntax == uid.JPEG2000 else {}
            dataset.compress(syntax, generate_instance_uid=False, **options)
            self._save(dataset, syntax.keyword.lower(), syntax=syntax)
        grey12, grey8, colour = self._values(12), self._values(8), self._colour_values()
        jpeg = imagecodecs.jpeg8_encode
        encoded: list[tuple[str, str, bytes | bytearray, NDArray[Any], int]] = [
            ("jpeg-baseline", uid.JPEGBaseline8Bit, jpeg(grey8, level=95), grey8, 8),
            ("jpeg-extended-12", uid.JPEGExtended12Bit, jpeg(grey12, level=95, bitspersample=12), grey12, 12),
            ("jpeg-progressive-12", _PROGRESSIVE, jpeg(grey12, level=95, bitspersample=12), grey12, 12),
            ("jpeg-lossless", uid.JPEGLosslessSV1, imagecodecs.ljpeg_encode(grey12, bitspersample=12), grey12, 12),
            ("jpeg-xl", _JXL, imagecodecs.jpegxl_encode(colour, lossless=True), colour, 8),
            ("deflated-frame", _DEFLATED_FRAME, _raw_deflate(grey12.tobytes()), grey12, 12),
        ]
        for name, encoding, frame, values, bits in encoded:
            dataset = self._image(values, bits=bits)
            dataset.PixelData = encapsulate([bytes(frame)])
            dataset["PixelData"].is_undefined_length = True
            self._save(dataset, name, syntax=uid.UID(encoding))

    def _photometrics(self) -> None:
        """Inverted, signed, palette, YBR, planar, padded."""
        self._save(self._grey(PhotometricInterpretation="MONOCHROME1"), "monochrome1")
        signed = (self._values(12).astype(np.int32) - 2048).astype(np.int16)
        self._save(self._image(signed, bits=16, PixelPaddingValue=-2000, RescaleSlope=1, RescaleIntercept=0), "signed")
        colour = self._colour_values()
        planar = self._image(colour)
        planar.PlanarConfiguration, planar.PixelData = 1, colour.transpose(2, 0, 1).tobytes()
        self._save(planar, "rgb-planar")
        ybr = np.asarray(Image.fromarray(self._colour_values()).convert("YCbCr"))
        self._save(self._image(ybr, PhotometricInterpretation="YBR_FULL"), "ybr-full")
        halved = np.concatenate([ybr[:, 0::2, :1], ybr[:, 1::2, :1], ybr[:, ::2, 1:]], axis=2)
        dataset = self._image(ybr, PhotometricInterpretation="YBR_FULL_422")
        dataset.PixelData = np.ascontiguousarray(halved).tobytes()
        self._save(dataset, "ybr-full-422")
        palette = self._image(self._values(8), PhotometricInterpretation="PALETTE COLOR")
        for colour_name, ramp in zip(("Red", "Green", "Blue"), (1.0, 0.8, 0.6), strict=True):
            table = np.rint(np.arange(256) * ramp).astype("<u2") * 257
            palette[f"{colour_name}PaletteColorLookupTableDescriptor"] = pydicom.DataElement(
                f"{colour_name}PaletteColorLookupTableDescriptor", "US", [256, 0, 16]
            )
            setattr(palette, f"{colour_name}PaletteColorLookupTableData", table.tobytes())
        self._save(palette, "palette")

    def _tables(self) -> None:
        """Windows and look-up tables."""
        self._save(self._grey(WindowCenter=[1500, 2000], WindowWidth=[2500, 4000]), "two-windows")
        self._save(self._grey(WindowCenter=1500, WindowWidth=2500, VOILUTFunction="SIGMOID"), "sigmoid")
        item = _table(65535 * (np.arange(4096) / 4095) ** 2)
        self._save(self._grey(VOILUTSequence=DicomSequence([item])), "voi-lut")
        item = _table(2 * np.arange(4096))
        item.ModalityLUTType = "US"
        self._save(self._grey(ModalityLUTSequence=DicomSequence([item])), "modality-lut")

    def _frames(self) -> None:
        """Several frames, without and with functional groups; no preamble; no file meta."""
        stack = np.stack([self._values(12) for _ in range(3)])
        self._save(self._image(stack[0], bits=12, NumberOfFrames=3, PixelData=stack.tobytes()), "multi-frame")
        enhanced = self._image(stack[0], bits=12, NumberOfFrames=3, PixelData=stack[::-1].tobytes())
        groups = []
        for frame in range(3):
            window, group = Dataset(), Dataset()
            window.WindowCenter, window.WindowWidth = 1000 + 500 * frame, 2000
            group.FrameVOILUTSequence = DicomSequence([window])
            groups.append(group)
        enhanced.PerFrameFunctionalGroupsSequence = DicomSequence(groups)
        self._save(enhanced, "enhanced")
        path = self._save(self._grey(), "no-preamble")
        path.write_bytes(path.read_bytes()[132:])
        bare = self._grey()
        path = self._save(bare, "no-meta", syntax=uid.ImplicitVRLittleEndian)
        del bare.file_meta, bare.preamble
        pydicom.dcmwrite(path, bare, implicit_vr=True, little_endian=True)

    def _quarantine(self) -> None:
        """What a policy keeps out unless it admits it."""
        self._save(self._grey(BurnedInAnnotation="YES", text=True), "burned-in", RejectReason.BURNED_IN_TEXT)
        capture = self._image(self._colour_values(), SOPClassUID=uid.SecondaryCaptureImageStorage, text=True)
        self._save(capture, "secondary-capture", RejectReason.SECONDARY_CAPTURE)
        screen = self._grey(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"], text=True)
        self._save(screen, "screen-save", RejectReason.SCREEN_SAVE)
        self._save(self._ultrasound(), "ultrasound-unknown", RejectReason.ULTRASOUND_TEXT)
        region = Dataset()
        region.RegionLocationMinX0, region.RegionLocationMinY0 = 8, 24
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = _SIZE - 9, _SIZE - 9
        self._save(self._ultrasound(SequenceOfUltrasoundRegions=DicomSequence([region])), "ultrasound-regions")
        labels = self._image((self._values(8) > 128).astype(np.uint8), SOPClassUID=uid.SegmentationStorage)
        labels.Modality = "SEG"
        self._save(labels, "segmentation", RejectReason.NOT_A_PICTURE)
        self._save(self._image(self._values(12)[:8, :8].copy(), bits=12), "tiny", RejectReason.TOO_SMALL)
        flat = np.full((_SIZE, _SIZE), 1000, np.uint16)
        self._save(self._image(flat, bits=12, WindowCenter=1000, WindowWidth=4000), "blank", RejectReason.NEAR_BLANK)
        bright = self._values(12)
        bright[: _SIZE // 2] = 4095
        self._save(self._image(bright, bits=12), "saturated")

    def _pictures(self) -> None:
        """PNG, JPEG and TIFF, one of them a copy of a DICOM file in another format."""
        self._plain("photo.png", Image.fromarray(self._colour_values()))
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter
        self._plain("turned.jpg", Image.fromarray(self._colour_values()), exif=exif, quality=95)
        self._plain("photo.jpeg", Image.fromarray(self._colour_values()), quality=95)
        self._plain("deep.png", Image.fromarray(self._values(12)))
        pages = [Image.fromarray(self._values(8)) for _ in range(2)]
        self._plain("pages.tif", pages[0], save_all=True, append_images=pages[1:])
        colour = self._colour_values()
        self._save(self._image(colour), "original")
        # Named so that it comes after every patient's folder: of equal images the first by name counts.
        self._plain("zz-copy-of-original.png", Image.fromarray(colour), outcome=RejectReason.DUPLICATE)

    def _volumes(self) -> None:
        """A CT series with nodules and their list, the same as NIfTI upside down, and a patch set."""
        hu, nodules = self._ct()
        patient = self._patient()
        study, series = self._uid("ct study"), self._uid("ct series")
        for number in range(_CT_SLICES):
            dataset = self._image(hu[number], bits=16, patient=patient, RescaleSlope=1, RescaleIntercept=0)
            dataset.SOPClassUID, dataset.Modality = uid.CTImageStorage, "CT"
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
            dataset.ImagePositionPatient = [-70.0, -60.0, -30.0 + number * _CT_SPACING[0]]
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            dataset.PixelSpacing = list(_CT_SPACING[1:])
            # File names in another order than the slices, as exports have them.
            self._save(dataset, f"ct-{(number * 7) % _CT_SLICES:02d}", outcome=[ACCEPTED, RejectReason.NEAR_BLANK])
        with (self.folder / NODULES).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"))
            writer.writerows((series, *(round(float(place), 3) for place in (x, y, z)), d) for z, y, x, d in nodules)
        self.expected[NODULES] = [RejectReason.NOT_AN_IMAGE]
        volume = self._ct()[0].transpose(2, 1, 0)[:, :, ::-1]
        affine = np.diag([-_CT_SPACING[2], -_CT_SPACING[1], -_CT_SPACING[0], 1.0])
        image = nibabel.Nifti1Image(volume, affine)
        nibabel.save(image, self.folder / "volume.nii.gz")
        self.expected["volume.nii.gz"] = [ACCEPTED, RejectReason.NEAR_BLANK]
        patches = np.stack([self._values(8)[:32, :32] for _ in range(5)])
        np.savez_compressed(self.folder / "patches.npz", images=patches)
        self.expected["patches.npz"] = [ACCEPTED]

    def _damage(self) -> None:
        """What no policy can save."""
        path = self._save(self._grey(), "cut", RejectReason.TRUNCATED)
        path.write_bytes(path.read_bytes()[:-2000])
        report = self._grey()
        del report.PixelData
        self._save(report, "report", RejectReason.NO_PIXELS)
        wrong = self._grey()
        wrong.Rows = _SIZE * 400
        self._save(wrong, "wrong-size", RejectReason.TRUNCATED)
        for name, data, reason in (
            ("empty.dcm", b"", RejectReason.EMPTY),
            ("notes.txt", b"PHANTOM: not an image", RejectReason.NOT_AN_IMAGE),
            ("half.png", self._half_a_png(), RejectReason.TRUNCATED),
        ):
            (self.folder / name).write_bytes(data)
            self.expected[name] = [reason]

    def _patient(self) -> str:
        self.patients += 1
        # Letters only, so that no other number or word of a run can contain it by chance.
        letters = self.rng.choice(list("BCDFGHJKLMNPQRSTVWXZ"), 10)
        return f"PHANTOM{''.join(letters)}"

    def _save(
        self,
        dataset: FileDataset,
        name: str,
        outcome: str | list[str] = ACCEPTED,
        *,
        syntax: uid.UID = uid.ExplicitVRLittleEndian,
    ) -> Path:
        """Write a dataset into its patient's folder."""
        stand_in = _STAND_INS.get(str(syntax), syntax)
        dataset.file_meta.TransferSyntaxUID = stand_in
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = self._uid(f"{name} {self.patients}")
        file = f"{str(dataset.PatientName).replace('^', '_')}/{name}.dcm"
        path = self.folder / file
        path.parent.mkdir(exist_ok=True)
        implicit, little = syntax == uid.ImplicitVRLittleEndian, syntax != uid.ExplicitVRBigEndian
        pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=little)
        if stand_in != syntax:
            written, meant = stand_in.encode(), str(syntax).encode().ljust(len(stand_in), b"\0")
            path.write_bytes(path.read_bytes().replace(written, meant, 1))
        self.expected[file] = [outcome] if isinstance(outcome, str) else outcome
        return path

    def _plain(self, name: str, image: Image.Image, outcome: str = ACCEPTED, **options: Any) -> None:
        image.save(self.folder / name, **options)
        self.expected[name] = [outcome]

    def _grey(self, **tags: Any) -> FileDataset:
        return self._image(self._values(12), bits=12, **tags)

    def _ultrasound(self, **tags: Any) -> FileDataset:
        image = self._image(self._values(8), SOPClassUID=uid.UltrasoundImageStorage, text=True, **tags)
        image.Modality = "US"
        return image

    def _image(
        self, values: NDArray[Any], *, bits: int = 8, text: bool = False, patient: str | None = None, **tags: Any
    ) -> FileDataset:
        """A dataset of an invented patient around an image; ``text`` draws the name into the pixels."""
        patient = patient or self._patient()
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        colour = values.ndim == 3
        dataset.SOPClassUID = uid.VLPhotographicImageStorage if colour else uid.DigitalXRayImageStorageForPresentation
        dataset.Modality = "XC" if colour else "DX"
        dataset.Manufacturer = "PHANTOM (no real device)"
        dataset.SeriesDescription = "PHANTOM: drawn by a program, not a patient"
        dataset.PatientName, dataset.PatientID = f"{patient}^{patient[::-1].title()}", f"ID-{patient}"
        dataset.PatientBirthDate = f"19{self.patients % 90 + 10}0{self.patients % 9 + 1}17"
        dataset.AccessionNumber, dataset.InstitutionName = f"ACC{patient[-8:]}", f"Hospital {patient[-6:]}"
        dataset.StudyDate = f"20{self.patients % 20 + 10}0{self.patients % 9 + 1}23"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = self._uid(f"study {patient}"), self._uid(patient)
        dataset.Rows, dataset.Columns = values.shape[:2]
        dataset.SamplesPerPixel = 3 if colour else 1
        dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            dataset.PlanarConfiguration = 0
        dataset.BitsAllocated = 8 * values.itemsize
        dataset.BitsStored, dataset.HighBit = bits, bits - 1
        dataset.PixelRepresentation = int(values.dtype.kind == "i")
        dataset.PixelData = (_with_text(values, patient) if text else values).tobytes()
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        return dataset

    def _values(self, bits: int) -> NDArray[Any]:
        """A drawn radiograph with an edge of its own, as ``bits``-bit integers."""
        label = str(self.rng.choice(list(RADIOGRAPH_PATTERNS)))
        drawn = phantom_radiograph(self.rng, label, _SIZE)
        values: NDArray[Any] = np.rint(drawn * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
        return values

    def _colour_values(self) -> NDArray[np.uint8]:
        label = str(self.rng.choice(list(LESION_PATTERNS)))
        skin, pigment = np.array([0.86, 0.68, 0.6], np.float32), np.array([0.5, 0.35, 0.3], np.float32)
        return np.rint(phantom_lesion(self.rng, label, skin, pigment, _SIZE) * 255).astype(np.uint8)

    def _ct(self) -> tuple[NDArray[np.int16], list[tuple[float, float, float, float]]]:
        """A chest of air and tissue in HU ``(Z, Y, X)`` with three nodules, and their places in mm with diameters."""
        rng = np.random.default_rng((self.seed, 78))
        z, y, x = np.meshgrid(*(np.arange(n) for n in (_CT_SLICES, _SIZE, _SIZE)), indexing="ij")
        hu = np.full(z.shape, -1000.0)
        hu[((y - 48) / 44) ** 2 + ((x - 48) / 46) ** 2 < 1] = 40
        for centre in (28, 68):
            hu[((y - 46) / 30) ** 2 + ((x - centre) / 15) ** 2 < 1] = -850
        hu += rng.normal(0, 20, hu.shape)
        nodules = []
        for index in ((8, 40, 28), (12, 52, 68), (16, 35, 66)):
            radius = float(rng.uniform(4, 8))
            place = [index[axis] * _CT_SPACING[axis] for axis in range(3)]
            distance = [(grid * _CT_SPACING[axis] - place[axis]) ** 2 for axis, grid in enumerate((z, y, x))]
            hu[sum(distance) < radius**2] = 60
            nodules.append((place[0] - 30.0, place[1] - 60.0, place[2] - 70.0, round(2 * radius, 2)))
        return np.rint(hu).astype(np.int16), nodules

    def _half_a_png(self) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self._colour_values()).save(buffer, format="PNG")
        data = buffer.getvalue()
        return data[: len(data) // 2]

    def _uid(self, name: str) -> uid.UID:
        return uid.generate_uid(prefix="2.25.", entropy_srcs=["aiseeme mixed phantom", str(self.seed), name])


def _table(values: NDArray[Any]) -> Dataset:
    """A look-up table for 12-bit values."""
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 16]
    item.add_new("LUTData", "OW", values.astype("<u2").tobytes())
    return item


def _with_text(values: NDArray[Any], text: str) -> NDArray[Any]:
    mask = Image.new("L", (values.shape[1], values.shape[0]))
    ImageDraw.Draw(mask).text((2, 4), text, fill=255)
    drawn: NDArray[Any] = values.copy()
    drawn[np.asarray(mask) > 127] = np.iinfo(values.dtype).max if values.dtype == np.uint8 else 4095
    return drawn


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()
