"""Cheap DICOM data sets for tests: small, smooth, and odd in exactly the way that is asked.

``sample_dicom/draw.py`` draws chests; a picture here is a few soft waves, which the bundled
model holds for novel: :func:`chest_radiograph` is what it scores. What is passed as
``picture`` is what a display should show: the stored values are inverted under MONOCHROME1,
and again under a negative rescale slope.
"""

import subprocess
import tempfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    generate_uid,
)

from sample_dicom.draw import chest
from triage.pixels import JPEG_PROGRESSIVE

Picture = npt.NDArray[np.float64]
"""float64, shape (rows, columns), 0.0 (black) to 1.0 (white), as displayed."""

_SAME_FOR_ALL = {
    "ImageType": ["ORIGINAL", "PRIMARY"],
    "PatientName": "Test^Child",
    "PatientID": "T-1",
    "PatientSex": "F",
    "PatientAge": "003Y",
    "PatientBirthDate": "20221104",
    "StudyDate": "20260105",
    "StudyTime": "101500",
    "StudyID": "1",
    "AccessionNumber": "A-1",
    "ReferringPhysicianName": "",
    "Manufacturer": "",
    "SeriesNumber": 1,
    "InstanceNumber": 1,
    "BodyPartExamined": "CHEST",
    "ViewPosition": "PA",
    "PatientOrientation": ["L", "F"],
}
_OF_DX = {
    "PresentationIntentType": "FOR PRESENTATION",
    "ImageLaterality": "U",
    "DetectorType": "",
    "PositionerType": "",
    "ImagerPixelSpacing": [0.2, 0.2],
    "PixelIntensityRelationship": "LOG",
    "PixelIntensityRelationshipSign": -1,
    "RescaleSlope": 1,
    "RescaleIntercept": 0,
    "RescaleType": "US",
    "BurnedInAnnotation": "NO",
    "LossyImageCompression": "00",
    "AcquisitionContextSequence": [],
}


def picture(seed: int, rows: int = 48, columns: int = 40) -> Picture:
    """Draw soft waves that reach from 0.0 to 1.0."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j]
    waves = sum(
        np.cos(2 * np.pi * (random.uniform(-2, 2) * x + random.uniform(-2, 2) * y + phase))
        for phase in random.uniform(size=4)
    )
    drawn = waves + 0.05 * random.standard_normal((rows, columns))
    return np.asarray((drawn - drawn.min()) / (drawn.max() - drawn.min()))


def stored_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """Return the least and the greatest stored value (PS3.5 8.1.1)."""
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def modality_range(
    bits: int,
    *,
    signed: bool,
    slope: float = 1,
    intercept: float = 0,
    modality_lut: bool = False,
    lut_bits: int = 16,
) -> tuple[float, float]:
    """Return the least and the greatest value that the modality transform gives."""
    if modality_lut:
        return 0, (1 << lut_bits) - 1
    low, high = sorted(value * slope + intercept for value in stored_range(bits, signed=signed))
    return low, high


def radiograph(
    shown: Picture,
    *,
    bits: int = 12,
    allocated: int = 16,
    signed: bool = False,
    photometric: str = "MONOCHROME2",
    window: tuple[float, float] | None = None,
    voi_function: str | None = None,
    voi_lut: bool = False,
    modality_lut: bool = False,
    lut_bits: int = 16,
    slope: float = 1,
    intercept: float = 0,
    padding: int | None = None,
    sop_class: UID = ComputedRadiographyImageStorage,
    transfer_syntax: UID = ExplicitVRLittleEndian,
    **attributes: object,
) -> Dataset:
    """Build one frontal chest radiograph of a child of three.

    Parameters
    ----------
    shown : Picture
    bits, allocated, signed
        Bits Stored, Bits Allocated, and whether Pixel Representation is 1.
    window, voi_function
        Center and width in the modality transform's units, and VOI LUT Function.
    voi_lut, modality_lut
        Add a look-up table with a curve, in entries of ``lut_bits``, over all of its input.
    slope, intercept
        Rescale; written unless they are 1 and 0.
    padding
        Pixel Padding Value, in stored values; the first quarter of the columns gets it.
    transfer_syntax
        An uncompressed one; :func:`compressed` makes the others.
    **attributes
        Any further elements by keyword, last; ``None`` takes one away.
    """
    low, high = stored_range(bits, signed=signed)
    levels = np.rint(shown * (high - low)).astype(np.int64)
    if (photometric == "MONOCHROME1") != (slope < 0):
        levels = (high - low) - levels
    stored = levels + low
    if padding is not None:
        stored[:, : stored.shape[1] // 4] = padding

    dataset = _of_a_child(sop_class, transfer_syntax)
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    order = "<" if transfer_syntax.is_little_endian else ">"
    put_pixels(dataset, stored.astype(f"{order}{'i' if signed else 'u'}{allocated // 8}").tobytes())
    if padding is not None:
        dataset.add_new("PixelPaddingValue", "SS" if signed else "US", padding)

    given: dict[str, object] = {"VOILUTFunction": voi_function} if voi_function else {}
    if sop_class == DigitalXRayImageStorageForPresentation:
        given["PresentationLUTShape"] = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    if modality_lut:
        item = lut(low, _curve(high - low + 1, 0.8, lut_bits), order, lut_bits)
        item.ModalityLUTType = "US"
        given["ModalityLUTSequence"] = [item]
    elif (slope, intercept) != (1, 0):
        given |= {"RescaleSlope": slope, "RescaleIntercept": intercept, "RescaleType": "US"}
    if voi_lut:
        least, most = modality_range(
            bits,
            signed=signed,
            slope=slope,
            intercept=intercept,
            modality_lut=modality_lut,
            lut_bits=lut_bits,
        )
        curve = _curve(int(most - least) + 1, 1.4, lut_bits)
        given["VOILUTSequence"] = [lut(int(least // 1), curve, order, lut_bits)]
    if window is not None:
        given["WindowCenter"], given["WindowWidth"] = window
    return _put(dataset, given | attributes)


def chest_radiograph(
    seed: int = 1, shape: tuple[int, int] = (140, 116), **attributes: object
) -> Dataset:
    """Build a radiograph that the bundled model scores, as :func:`radiograph` otherwise does."""
    return radiograph(chest(seed, shape=shape), window=(2048, 4096), **attributes)


def lut(first: int, entries: npt.NDArray[np.uint16], order: str = "<", bits: int = 16) -> Dataset:
    """Build an item of a Modality or VOI LUT Sequence (PS3.3 C.11.1.1.1)."""
    item = Dataset()
    descriptor = [len(entries) % 65_536, first, bits]
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", descriptor)
    item.add_new("LUTData", "OW", entries.astype(f"{order}u2").tobytes())
    return item


def code(value: str, meaning: str = "not said", scheme: str = "SCT") -> Dataset:
    """Build an item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def put_pixels(dataset: Dataset, data: bytes) -> None:
    """Set Pixel Data to uncompressed bytes, of even length and with the standard's VR."""
    bytewise = dataset.BitsAllocated == 8 and not dataset.file_meta.TransferSyntaxUID.is_implicit_VR
    dataset.add_new("PixelData", "OB" if bytewise else "OW", data + b"\0" * (len(data) % 2))


def save(dataset: Dataset, path: Path) -> Path:
    """Write a DICOM file (PS3.10)."""
    path.write_bytes(encoded(dataset))
    return path


def encoded(dataset: Dataset) -> bytes:
    """Return a DICOM file's bytes."""
    file = BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def reread(dataset: Dataset) -> Dataset:
    """Return what a reader of the written file gets."""
    return dcmread(BytesIO(encoded(dataset)))


def compressed(dataset: Dataset, folder: Path, *options: str, program: str = "dcmcjpeg") -> Dataset:
    """Let DCMTK's ``dcmcjpeg`` or another program of its compress a data set, and read that."""
    before, after = save(dataset, folder / "before.dcm"), folder / "after.dcm"
    subprocess.run([program, *options, before, after], check=True)
    return dcmread(after)


LOSSLESS = (
    RLELossless,
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
)
LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEG_PROGRESSIVE, JPEGLSNearLossless, JPEG2000, HTJ2K)
_DCMTK = {
    JPEGBaseline8Bit: ("dcmcjpeg", "+eb"),
    JPEGExtended12Bit: ("dcmcjpeg", "+ee"),
    JPEG_PROGRESSIVE: ("dcmcjpeg", "+ep"),
    JPEGLosslessSV1: ("dcmcjpeg", "+e1"),
    JPEGLossless: ("dcmcjpeg", "+el"),
    RLELossless: ("dcmcrle",),
}
_PYDICOM: dict[UID, dict[str, object]] = {
    JPEGLSLossless: {},
    JPEGLSNearLossless: {"jls_error": 1},
    JPEG2000Lossless: {},
    JPEG2000: {"j2k_cr": [4]},
}
_OPENJPH = {
    HTJ2KLossless: ("-reversible", "true", "-prog_order", "LRCP"),
    HTJ2KLosslessRPCL: ("-reversible", "true", "-prog_order", "RPCL"),
    HTJ2K: ("-reversible", "false", "-qstep", "0.002"),
}


def recoded(dataset: Dataset, syntax: UID) -> Dataset:
    """Return what a reader gets of a data set, uncompressed until now, in a compressed syntax.

    DCMTK encodes RLE and what is named JPEG, OpenJPH what is named HTJ2K (unsigned only), and
    pydicom's plugins the rest (JPEG 2000 from 32 rows and columns on): other programs than
    those that decode it where there are any.
    """
    if syntax in _PYDICOM:
        small = reread(dataset)
        small.compress(syntax, generate_instance_uid=False, **_PYDICOM[syntax])
        return reread(small)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if syntax in _DCMTK:
            program, *options = _DCMTK[syntax]
            if dataset.BitsStored > 8 and syntax in {JPEGExtended12Bit, JPEG_PROGRESSIVE}:
                options.append("+bt")
            # With loss, dcmcjpeg would encode what the modality LUT gives.
            source = _bare(dataset) if syntax in LOSSY else dataset
            coded = compressed(source, folder, *options, program=program)
            assert coded.file_meta.TransferSyntaxUID == syntax
            return _with_stream(dataset, syntax, coded.PixelData)
        grey, stream = folder / "grey.yuv", folder / "stream.j2c"
        wide = np.frombuffer(dataset.PixelData, f"<u{dataset.BitsAllocated // 8}")
        cells = wide[: dataset.Rows * dataset.Columns]
        grey.write_bytes(cells.astype(np.uint8 if dataset.BitsStored <= 8 else "<u2").tobytes())
        description = (
            "-dims", f"{{{dataset.Columns},{dataset.Rows}}}", "-num_comps", "1",
            "-signed", "false",
            "-bit_depth", str(dataset.BitsStored), "-downsamp", "{1,1}", "-num_decomps", "2",
        )  # fmt: skip
        subprocess.run(
            ["ojph_compress", "-i", grey, "-o", stream, *description, *_OPENJPH[syntax]],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return _with_stream(dataset, syntax, encapsulate([stream.read_bytes()]))


def _bare(dataset: Dataset) -> Dataset:
    """Its stored values, and nothing that says what they mean."""
    bare = _of_a_child(ComputedRadiographyImageStorage, ExplicitVRLittleEndian)
    for element in dataset.group_dataset(0x0028):
        if element.tag.element <= 0x0103 and element.VR != "SQ":
            bare[element.tag] = element
    bare.PhotometricInterpretation = "MONOCHROME2"
    put_pixels(bare, dataset.PixelData)
    return bare


def _with_stream(dataset: Dataset, syntax: UID, data: bytes) -> Dataset:
    coded = reread(dataset)
    coded.file_meta.TransferSyntaxUID = syntax
    coded.add_new("PixelData", "OB", data)
    return reread(coded)


def _of_a_child(sop_class: UID, transfer_syntax: UID) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    dataset.SOPClassUID = sop_class
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(dataset, keyword, generate_uid())
    if sop_class != DigitalXRayImageStorageForPresentation:
        return _put(dataset, {"Modality": "CR", **_SAME_FOR_ALL})
    codes = {
        "AnatomicRegionSequence": [code("816094009", "Chest")],
        "ViewCodeSequence": [code("272479007", "postero-anterior")],
    }
    return _put(dataset, {"Modality": "DX", **_SAME_FOR_ALL, **_OF_DX, **codes})


def _put(dataset: Dataset, attributes: Mapping[str, object]) -> Dataset:
    for keyword, value in attributes.items():
        if value is None:
            dataset.pop(keyword, None)
        else:
            setattr(dataset, keyword, value)
    return dataset


def _curve(count: int, gamma: float, bits: int) -> npt.NDArray[np.uint16]:
    most = (1 << bits) - 1
    return np.rint(most * np.linspace(0.0, 1.0, count) ** gamma).astype(np.uint16)
