"""Fuzzing of the pixel way that is guided by coverage: a process of libFuzzer, by atheris.

``python -m tests.faults.guided FOLDER -runs=N`` and any other option of libFuzzer. A case is a
byte that chooses the transfer syntax, and a data set. libFuzzer ends the process at the first
defect and keeps the case as a file.
"""

import logging
import sys
import warnings
from pathlib import Path

import atheris

# Only what is imported here for the first time is seen by the fuzzer.
with atheris.instrument_imports(include=["triage", "pydicom"]):
    import pydicom.pixels.decoders  # noqa: F401
    from pydicom.uid import AllTransferSyntaxes

    import triage.admission
    import triage.pixels
    import triage.scp  # noqa: F401

from tests.faults.fuzz import originals, settled, split

LONGEST = 60_000
"""Bytes of a case: many small ones reach more than few large ones."""

SYNTAXES = sorted(AllTransferSyntaxes)


def seeds(folder: Path) -> None:
    """Write valid cases for libFuzzer to start from."""
    for file in originals():
        meta, data = split(file)
        if len(data) < LONGEST and meta.TransferSyntaxUID in SYNTAXES:
            first = bytes([SYNTAXES.index(meta.TransferSyntaxUID)])
            (folder / file.stem).write_bytes(first + data)


def one(case: bytes) -> None:
    """A case must be settled without an error of this program."""
    if case:
        outcome = settled(str(SYNTAXES[case[0] % len(SYNTAXES)]), case[1:])
        assert "kept, SCORING_ERROR" not in outcome, outcome


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    seeds(Path(sys.argv[1]))
    atheris.Setup([*sys.argv, f"-max_len={LONGEST}"], one)
    atheris.Fuzz()
