"""Draws ``triage/decoder_proofs.json``: one tiny picture in every compressed transfer syntax.

``python -m tests.make_decoder_proofs``; needs DCMTK, and OpenJPH's ``ojph_compress`` for
HTJ2K (Debian: dcmtk, openjph-tools). Run it only to add a syntax: the file is kept, so that
a decoder is held to streams that other programs wrote.
"""

import base64
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.encaps import generate_frames
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
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
)

from tests.builders import radiograph, save
from triage.decoders import COLUMNS, PROOFS, ROWS, expected
from triage.pixels import JPEG_PROGRESSIVE

BY_DCMTK = {
    JPEGBaseline8Bit: (8, ["dcmcjpeg", "+eb"]),
    JPEGExtended12Bit: (12, ["dcmcjpeg", "+ee", "+bt"]),
    JPEGLosslessSV1: (12, ["dcmcjpeg", "+e1"]),
    JPEGLossless: (12, ["dcmcjpeg", "+el"]),
    JPEG_PROGRESSIVE: (8, ["dcmcjpeg", "+ep"]),
    JPEGLSLossless: (12, ["dcmcjpls", "+el"]),
    JPEGLSNearLossless: (12, ["dcmcjpls", "+en", "+md", "2"]),
}
BY_PYDICOM = {
    JPEG2000Lossless: (12, {}),
    JPEG2000: (12, {"j2k_cr": [2]}),
    RLELossless: (12, {}),
}
BY_OPENJPH = {
    HTJ2KLossless: (12, ["-reversible", "true", "-prog_order", "LRCP"]),
    HTJ2KLosslessRPCL: (12, ["-reversible", "true", "-prog_order", "RPCL"]),
    HTJ2K: (12, ["-reversible", "false", "-qstep", "0.001"]),
}


def main() -> None:
    """Write the file."""
    made: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for syntax, (bits, command) in BY_DCMTK.items():
            before, after = save(_picture(bits), folder / "before.dcm"), folder / "after.dcm"
            subprocess.run([*command, before, after], check=True)
            made[syntax] = _entry(bits, next(generate_frames(dcmread(after).PixelData)))
        for syntax, (bits, options) in BY_PYDICOM.items():
            dataset = _picture(bits)
            dataset.compress(syntax, **options)
            made[syntax] = _entry(bits, next(generate_frames(dataset.PixelData)))
        for syntax, (bits, command) in BY_OPENJPH.items():
            grey, stream = folder / "picture.pgm", folder / "picture.j2c"
            header = f"P5 {COLUMNS} {ROWS} {(1 << bits) - 1}\n".encode()
            grey.write_bytes(header + expected(bits).astype(">u2").tobytes())
            subprocess.run(
                ["ojph_compress", "-i", grey, "-o", stream, "-num_decomps", "2", *command],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            made[syntax] = _entry(bits, stream.read_bytes())
    PROOFS.write_text(json.dumps(made, indent=1) + "\n")


def _picture(bits: int):  # type: ignore[no-untyped-def]
    allocated = 8 if bits == 8 else 16
    made = radiograph(expected(bits) / ((1 << bits) - 1), bits=bits, allocated=allocated)
    stored = np.frombuffer(made.PixelData, f"<u{allocated // 8}").reshape(ROWS, COLUMNS)
    assert np.array_equal(stored, expected(bits))
    return made


def _entry(bits: int, stream: bytes) -> dict[str, object]:
    return {"bits": bits, "stream": base64.b64encode(stream).decode()}


if __name__ == "__main__":
    main()
