"""The radiographs that are sent, and who sends them; the same for every peer."""

import socket
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from sample_dicom.draw import Exam, as_dx, chest, write
from tests.integration.test_receiver import Console, data_of

LARGE, SMALL = (2500, 2000), (150, 130)
"""Rows and columns: 10 MB and 39 KB in 16 bits allocated."""


@dataclass(frozen=True)
class Address:
    """Where a peer listens."""

    port: int
    title: str


@cache
def picture(shape: tuple[int, int]) -> np.ndarray:
    """A drawn chest; a large one is a quarter of the size, enlarged, with the grain of a film."""
    if shape == SMALL:
        return chest(1, shape=shape)
    small = chest(1, shape=(shape[0] // 4, shape[1] // 4))
    grain = np.random.default_rng(1).normal(0, 0.02, shape)
    return np.asarray(np.clip(small.repeat(4, 0).repeat(4, 1) + grain, 0, 1))


def radiograph(number: int, shape: tuple[int, int]) -> Dataset:
    """A DX of a patient and a study of its own."""
    made = _template(shape)
    exam = Exam(number)
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = exam.uid("bench", shape)
    made.StudyInstanceUID, made.SeriesInstanceUID = exam.uid("study"), exam.uid("series")
    made.PatientID, made.AccessionNumber = f"SYN-{number:06}", f"SYN-A-{number:06}"
    return made


@cache
def _template(shape: tuple[int, int]) -> Dataset:
    return as_dx(picture(shape), Exam(1), bits=12)


def files(folder: Path, number: int, shape: tuple[int, int]) -> list[Path]:
    """So many of them."""
    folder.mkdir()
    out = []
    for index in range(number):
        out.append(folder / f"{index:06}.dcm")
        write(radiograph(index, shape), out[-1])
    return out


def split(all_of_them: Sequence[Path], parts: int) -> list[Sequence[Path]]:
    """As equal shares."""
    return [all_of_them[part::parts] for part in range(parts)]


def sent(there: Address, shares: Sequence[Sequence[Path]]) -> float:
    """Send each share on an association of its own, all at once; seconds until the last is done.

    DCMTK's ``dcmsend`` with the largest PDUs, each a process.
    """
    to = ["-aec", there.title, "127.0.0.1", str(there.port)]
    began = time.perf_counter()
    senders = [
        subprocess.Popen(
            ["dcmsend", "--max-pdu", "131072", *to, *share],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for share in shares
    ]  # fmt: skip
    statuses = [sender.wait() for sender in senders]
    seconds = time.perf_counter() - began
    assert not any(statuses), f"{there} did not take all: {statuses}"
    return seconds


def sent_singly(there: Address, paths: Sequence[Path]) -> float:
    """Send each file on an association of its own, one after the other; seconds.

    From plain sockets: a process of ``dcmsend`` costs more than an association.
    """
    datasets = [wired(path) for path in paths]
    began = time.perf_counter()
    for data, uid in datasets:
        with console(there) as on:
            # storescp takes no more as it comes.
            status = on.store(data, uid, DigitalXRayImageStorageForPresentation, most=16_000)
            assert status == 0, f"{there} answered {status}"
    return time.perf_counter() - began


def wired(path: Path) -> tuple[bytes, str]:
    """A file's data set, as it goes over the wire, and its SOP Instance UID."""
    return data_of(path.read_bytes()), str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)


def console(there: Address) -> Console:
    """An association for a DX; what it writes is not held back to be joined with more."""
    contexts = [(DigitalXRayImageStorageForPresentation, [ExplicitVRLittleEndian])]
    made = Console(there.port, there.title, contexts)
    made.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """The median and the 95th percentile, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {"p50": cuts[9] * 1000, "p95": cuts[18] * 1000}
