"""The proof of decoders at the receiver's start."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Service
from tests.integration.test_receiver import CR, Console
from triage.decoders import Proving
from triage.scp import TRANSFER_SYNTAXES

JPEG = "1.2.840.10008.1.2.4."

ONLY_GDCM = {f"{JPEG}{end}" for end in (51, 57, 70)}
"""Of 12 bits and lossless; Pillow takes the place of GDCM in JPEG Baseline."""

CRASHING = """
import os

class Version:
    GetVersion = staticmethod(lambda: "3.0.26")

def __getattr__(name):
    if name.startswith("__") or name == "DataElement":
        raise AttributeError(name)
    os.abort()
"""


def test_every_offered_syntax_is_proven_here() -> None:
    """What the receiver can offer, and nothing else, has a proof, and each succeeds."""
    outcome = Proving().outcome()
    assert set(outcome) == set(TRANSFER_SYNTAXES)
    assert {syntax: why for syntax, why in outcome.items() if why} == {}


def shadow(folder: Path, content: str) -> dict[str, str]:
    """The environment in which a module of this content stands in gdcm's place."""
    (folder / "gdcm.py").write_text(content)
    return {"PYTHONPATH": ":".join([str(folder), *sys.path])}


@pytest.mark.parametrize(
    ("content", "words"),
    [("raise ImportError('no gdcm here')", "missing"), (CRASHING, "ended the process")],
    ids=["missing", "crashing"],
)
def test_what_is_not_proven_is_not_offered(
    new_service: Callable[..., Service],
    tmp_path: Path,
    content: str,
    words: str,
) -> None:
    """The log names the library to install, and the rest is offered as ever."""
    service = new_service(**shadow(tmp_path, content))
    service.start("--roles", "receive")
    lines = service.events()
    missing = [line for line in lines if line["action"] == "transfer_syntax_not_offered"]
    assert {line["transfer_syntax_uid"] for line in missing} == ONLY_GDCM
    for line in missing:
        assert words in line["error"]
        assert "install or mend python-gdcm" in line["advice"]
    for syntax in TRANSFER_SYNTAXES:
        with Console(service.port, contexts=[(CR, [str(syntax)])]) as console:
            result = console.answer[console.answer.index(b"!\x00") + 6]
        assert (result == 0) is (syntax not in ONLY_GDCM), syntax.name
    service.stop()


def test_the_receiver_starts_fast_and_small(new_service: Callable[..., Service]) -> None:
    """Although it proves every decoder: the process that tries them has ended."""
    service = new_service()
    service.start("--roles", "receive")
    assert service.process is not None
    proc = Path(f"/proc/{service.process.pid}")
    assert (proc / "task" / str(service.process.pid) / "children").read_text() == ""
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    assert int(status["VmHWM"].split()[0]) < 200_000
    service.stop()
