"""Mutations of recorded PDUs and of valid files, and the process that reads the files.

Every case is made from its number alone, so that a failure that names it can be run again.
"""

import json
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pydicom.data
from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import _read_file_meta_info
from pynetdicom.dsutils import encode_file_meta

SAMPLES = Path(__file__).parent.parent.parent / "sample_dicom"
FOUND = Path(__file__).parent / "found"
"""Files that once broke something, kept as regression tests."""

_ODD = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)


def mutated(data: bytes, chance: random.Random, before: int = 0) -> bytes:
    """The data with one to four changes, most of them near the beginning.

    Parameters
    ----------
    data : bytes
    chance : Random
    before : int
        Half of the changes are made before this place, if it is one.
    """
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        size = max(1, len(changed))
        at = chance.randrange(min(size, before) if before and chance.random() < 0.5 else size)
        count = chance.choice((1, 2, 4, 8, 64, 512))
        match chance.randrange(8):
            case 0 if changed:
                changed[min(at, len(changed) - 1)] ^= 1 << chance.randrange(8)
            case 1 | 2:
                width = chance.choice((1, 2, 4))
                value = chance.choice(_ODD) & ((1 << 8 * width) - 1)
                order = chance.choice(("little", "big"))
                changed[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]
            case 3:
                del changed[at : at + count]
            case 4:
                changed[at:at] = changed[at : at + count]
            case 5:
                changed[at:at] = chance.randbytes(count)
            case 6:
                changed[at : at + count] = chance.randbytes(count)
            case _:
                del changed[at:]
    return bytes(changed)


# Files


def originals() -> list[Path]:
    """Valid files with pixels: the samples, and pydicom's test set as far as it is installed."""
    installed = Path(pydicom.data.__file__).parent / "test_files"
    files = sorted(SAMPLES.glob("*.dcm")) + sorted(installed.rglob("*.dcm"))
    return [file for file in files if file.stat().st_size < 1_500_000 and _has_pixels(file)]


def _has_pixels(file: Path) -> bool:
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        return "PixelData" in dcmread(file) and "TransferSyntaxUID" in split(file)[0]
    return False


def split(file: Path) -> tuple[FileMetaDataset, bytes]:
    """File meta information and data set."""
    with file.open("rb") as opened:
        opened.seek(132)
        meta = FileMetaDataset(_read_file_meta_info(opened))
        return meta, opened.read()


def case(file: Path, number: int) -> tuple[str, bytes]:
    """Transfer syntax and data set of a mutated file; number 0 is the file as it is."""
    if file.suffix == ".bin":
        return file.stem.partition("-")[0], file.read_bytes()
    meta, data = split(file)
    chance = random.Random(f"{file.name} {number}")
    pixels = max(data.find(b"\xe0\x7f\x10\x00"), 0) + 600
    return str(meta.TransferSyntaxUID), mutated(data, chance, pixels) if number else data


def settled(syntax: str, data: bytes) -> str:
    """What receiver and worker make of a data set, on their way: ``triage.scp``, ``.worker``."""
    from pydicom.uid import UID

    from triage import scp
    from triage.admission import Population, admit
    from triage.errors import PixelsError
    from triage.pixels import normalize
    from triage.spool import Spool

    with tempfile.TemporaryDirectory() as folder:
        arriving = Spool(Path(folder)).arriving()
        try:
            arriving.write(data)
            scp._understand(arriving, UID(syntax), 512_000_000)
        except scp._Refusal as refusal:
            understood = f"refused with 0x{refusal.status:04X}"
        else:
            understood = "kept"
        finally:
            arriving.discard()
    # What is refused is read as well: it may have come under an older program.
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    content = bytes(128) + b"DICM" + encode_file_meta(meta) + data
    try:
        dataset = dcmread(BytesIO(content))
    # The spool's boundary.
    except Exception as error:  # noqa: BLE001
        return f"{understood}, not scored: DATA_SET_UNDECODABLE ({type(error).__name__})"
    try:
        admission = admit(dataset, Population("any", None, ()), warn_outside=True)
        outcome = f"not admitted: {admission.reason}" if admission.reason else ""
    # The worker's boundary, which says no more than this.
    except Exception as error:  # noqa: BLE001
        return f"{understood}, SCORING_ERROR: {type(error).__name__} in the header"
    try:
        normalize(dataset)  # also of what is not admitted: more pictures, more ways
        outcome = outcome or "normalized"
    except PixelsError as error:
        outcome = outcome or f"not scored: {error.reason}"
    except Exception as error:  # noqa: BLE001
        outcome = f"SCORING_ERROR: {type(error).__name__} in the pixels"
    return f"{understood}, {outcome}"


class Reader:
    """A process that reads cases, as the worker would; one that dies is followed by another.

    Parameters
    ----------
    seconds : float
        For one case.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def read(self, file: Path, number: int) -> tuple[str, int]:
        """What became of a case, and the most memory that it took, in bytes."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.fuzz"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(self._seconds, process.kill)
        try:
            process.stdin.write(json.dumps([str(file), number]) + "\n")
            process.stdin.flush()
            watch.start()
            told = process.stdout.readline()
        except BrokenPipeError:
            told = ""
        finally:
            watch.cancel()
        if told:
            outcome, memory = json.loads(told)
            return str(outcome), int(memory)
        status = process.wait()
        self.end()
        if status == -signal.SIGKILL:
            return f"no end within {self._seconds:g} s", 0
        return f"the process died with {status}", 0

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _main() -> None:
    warnings.simplefilter("ignore")
    import logging

    logging.disable()
    ours = sys.stdout
    sys.stdout = sys.stderr
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        file, number = json.loads(line)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        outcome = settled(*case(Path(file), number))
        status = Path("/proc/self/status").read_text()
        memory = 1_024 * int(status.partition("VmHWM:")[2].split()[0])
        print(json.dumps([outcome, memory]), file=ours, flush=True)


# PDUs


class Recorder:
    """Stands between a console and a receiver, and keeps what the console said."""

    def __init__(self, port: int) -> None:
        self._to, self.said = port, bytearray()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._listening, socket.create_connection(("127.0.0.1", self._to)) as receiver:
            console, _ = self._listening.accept()
            with console:
                back = threading.Thread(target=self._pass_on, args=[receiver, console, None])
                back.start()
                self._pass_on(console, receiver, self.said)
                back.join()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket, kept: bytearray | None) -> None:
        with suppress(OSError):
            while part := source.recv(65_536):
                if kept is not None:
                    kept += part
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)

    def pdus(self) -> list[bytes]:
        """What the console said, PDU by PDU (PS3.8 9.3.1)."""
        self._thread.join(20)
        found, at = [], 0
        while at < len(self.said):
            length = 6 + int.from_bytes(self.said[at + 2 : at + 6], "big")
            found.append(bytes(self.said[at : at + length]))
            at += length
        return found


def mutated_session(recorded: Sequence[Sequence[bytes]], number: int) -> list[bytes]:
    """A recorded session with PDUs changed, left out, doubled, exchanged or of another session."""
    chance = random.Random(number)
    pdus = list(chance.choice(recorded))
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(pdus)) if pdus else 0
        match chance.randrange(7):
            case 0 if len(pdus) > 1:
                del pdus[at]
            case 1 if pdus:
                pdus.insert(at, pdus[at])
            case 2 if pdus:
                other = chance.randrange(len(pdus))
                pdus[at], pdus[other] = pdus[other], pdus[at]
            case 3:
                pdus.insert(at, chance.choice(chance.choice(recorded)))
            case _ if pdus:
                # The length stays what it was, or is set right again.
                changed = mutated(pdus[at], chance, 200)
                if chance.random() < 0.6 and len(changed) >= 6:
                    changed = changed[:2] + (len(changed) - 6).to_bytes(4, "big") + changed[6:]
                pdus[at] = changed
            case _:
                pdus.insert(at, chance.randbytes(chance.randrange(1, 200)))
    return pdus


if __name__ == "__main__":
    _main()
