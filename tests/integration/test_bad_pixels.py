"""Pixel Data that lie: each gets a score or a reason, in bounded memory.

A worker without a network settles them in a process of its own, which may take 600 MB of
memory beyond what it starts with; one byte more and the system would refuse it.
"""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from tests.builders import chest_radiograph, lut, put_pixels, save
from tests.conftest import ROOT
from triage.decoders import COLUMNS, PROOFS, ROWS, _proof
from triage.pixels import JPEG_PROGRESSIVE, rle_bytes, stream_samples

PROGRAM = """
import json, resource, sys, warnings
from pathlib import Path
from pydicom import dcmread
from tests.integration.test_pictures import ANYBODY, Half
from triage.assessment import Assessor
from triage.identity import Instance
from triage.novelty import NOVELTY, Novelty
from triage.quality import QUALITY, Quality
from triage.spool import Spool, digest_of
from triage.worker import Worker
from triage.worklist import Arrival, Worklist
from triage.worklist.schema import migrate, open_engine

warnings.simplefilter("ignore")
home, model, room = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
url = f"sqlite:///{home / 'worklist.sqlite'}"
engine = open_engine(url, create=True)
migrate(engine)
engine.dispose()
worklist, spool = Worklist(url), Spool(home / "spool")
spool.prepare()
quality = Quality.load(model / QUALITY, Novelty.load(model / NOVELTY))
champion = Assessor(Half(), ANYBODY, quality)
for file in sorted(home.glob("*.dcm")):
    content = file.read_bytes()
    spool.put(digest_of(content), content)
    header = dcmread(file, stop_before_pixels=True)
    arrival = Arrival(Instance.of(header), "1.2", "X", "", digest_of(content), 1)
    assert worklist.receive(arrival)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + room
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
worker = Worker("w", worklist, spool, lambda: champion)
while worker.step():
    pass
told = {i.sop_instance_uid: (i.state, i.reason, i.explanation) for i in worklist.items()}
print(json.dumps(told))
"""


def bomb(syntax: str) -> Dataset:
    """A picture whose stream says that it is of 60,000 x 60,000."""
    proof = _proof(UID(syntax))
    stream = bytearray(next(generate_frames(proof.PixelData, number_of_frames=1)))
    if stream[:2] == b"\xff\x4f":
        for place in (8, 24):  # the picture, and its only tile
            struct.pack_into(">II", stream, place, 60_000, 60_000)
    else:
        struct.pack_into(">HH", stream, frame_header(stream) + 5, 60_000, 60_000)
    return with_stream(syntax, bytes(stream))


def frame_header(stream: bytes) -> int:
    """Where the SOF marker of a JPEG or JPEG-LS stream is."""
    at = 2
    while stream[at + 1] not in {0xC0, 0xC1, 0xC2, 0xC3, 0xF7}:
        at += 2 + int.from_bytes(stream[at + 2 : at + 4])
    return at


def with_stream(syntax: str, stream: bytes) -> Dataset:
    """A chest radiograph's header with a proof's description and this stream."""
    proof = _proof(UID(syntax))
    made = chest_radiograph()
    made.file_meta.TransferSyntaxUID = syntax
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"):
        setattr(made, keyword, proof[keyword].value)
    made.add_new("PixelData", "OB", encapsulate([stream or b"\0\0"]))
    made["PixelData"].is_undefined_length = True
    return made


def rle_bomb() -> Dataset:
    """20 MB that become 1.3 GB (PS3.5 G.3: two bytes become 128)."""
    runs = b"\x81\x00" * 10_000_000
    return with_stream(RLELossless, struct.pack("<16L", 1, 64, *[0] * 14) + runs)


def several() -> Dataset:
    """Three frames."""
    made = chest_radiograph(NumberOfFrames=3)
    put_pixels(made, made.PixelData * 3)
    return made


def palette() -> Dataset:
    """Pseudo-colour."""
    made = chest_radiograph(PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [65_535, 0, 16])
        setattr(made, f"{colour}PaletteColorLookupTableData", bytes(64))
    return made


def broken_lut(keyword: str) -> Dataset:
    """A look-up table that announces more than it has."""
    made = chest_radiograph(**{keyword: [lut(0, np.zeros(4, np.uint16))]})
    made[keyword].value[0].LUTDescriptor = [65_000, 0, 16]
    return made


UNDECODABLE = "PIXEL_DATA_UNDECODABLE"
BAD: dict[str, tuple[Callable[[], Dataset], str | None]] = {
    "zero rows": (lambda: chest_radiograph(Rows=0), UNDECODABLE),
    "zero columns": (lambda: chest_radiograph(Columns=0), UNDECODABLE),
    "65,535 x 65,535": (lambda: chest_radiograph(Rows=65_535, Columns=65_535), "PICTURE_TOO_LARGE"),
    "10,000 x 10,000": (lambda: chest_radiograph(Rows=10_000, Columns=10_000), UNDECODABLE),
    "10,000 x 10,000 in 8 bits": (
        lambda: chest_radiograph(Rows=10_000, Columns=10_000, BitsAllocated=8, BitsStored=8),
        UNDECODABLE,
    ),
    "ten thousand samples": (lambda: chest_radiograph(SamplesPerPixel=10_000), UNDECODABLE),
    "bits of 64": (lambda: chest_radiograph(BitsAllocated=64, BitsStored=64), UNDECODABLE),
    "multi-frame": (several, "MULTI_FRAME"),
    "a billion frames": (lambda: chest_radiograph(NumberOfFrames=10**9), "MULTI_FRAME"),
    "palette": (palette, "PHOTOMETRIC_UNSUPPORTED"),
    "a broken VOI LUT": (lambda: broken_lut("VOILUTSequence"), None),
    "a broken modality LUT": (lambda: broken_lut("ModalityLUTSequence"), None),
    "an RLE bomb": (rle_bomb, UNDECODABLE),
    "no stream": (lambda: with_stream(JPEGBaseline8Bit, b""), UNDECODABLE),
    "noise for a stream": (lambda: with_stream(JPEG2000Lossless, b"\xff" * 999), UNDECODABLE),
    "noise for RLE": (lambda: with_stream(RLELossless, b"\xff" * 999), UNDECODABLE),
}
for _syntax in (
    JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLosslessSV1, JPEGLossless, JPEG_PROGRESSIVE,
    JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless,
):  # fmt: skip
    BAD[f"a bomb in {_syntax.name}"] = (lambda syntax=_syntax: bomb(syntax), UNDECODABLE)


def test_bad_pixels_are_settled_in_bounded_memory(tmp_path: Path) -> None:
    """Each with its reason, by one worker that lives on; the good one after them is scored."""
    names: dict[str, str] = {}
    for number, (name, (make, _)) in enumerate({**BAD, "good": (chest_radiograph, None)}.items()):
        dataset = make()
        dataset.SOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        save(dataset, tmp_path / f"{number:03}.dcm")
        names[dataset.SOPInstanceUID] = name
    (model,) = (ROOT / "triage" / "bundled").glob("*")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path, model, "600000000"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = {names[uid]: row for uid, row in json.loads(done.stdout.splitlines()[-1]).items()}
    expected = {name: reason for name, (_, reason) in BAD.items()} | {"good": None}
    assert {name: reason for name, (_, reason, _) in told.items()} == expected
    assert {name for name, row in told.items() if "MemoryError" in row[2]} == set()


@pytest.mark.parametrize("syntax", json.loads(PROOFS.read_text()))
def test_a_stream_announces_what_it_becomes(syntax: str) -> None:
    """In every compressed syntax."""
    stream = next(generate_frames(_proof(UID(syntax)).PixelData, number_of_frames=1))
    if syntax == RLELossless:
        assert rle_bytes(stream) == 2 * ROWS * COLUMNS
    else:
        assert stream_samples(stream) == ROWS * COLUMNS
