"""The conformance statement says what a running receiver does."""

import re
from pathlib import Path

import pytest
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.conftest import ROOT
from tests.integration.test_receiver import Console
from triage.commitment import ATTEMPTS
from triage.decoders import LIBRARIES
from triage.pixels import JPEG_PROGRESSIVE
from triage.scp import HEADER_BYTES, MOST_ITEMS, TRANSFER_SYNTAXES, Receiver
from triage.send import Destination
from triage.sinks.pacs import Pacs
from triage.spool import Spool
from triage.transport import LONGEST_PDU, MAXIMUM_PDU
from triage.worklist import Worklist

PAGE = (ROOT / "docs" / "conformance.md").read_text("utf-8")


def table(heading: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading."""
    lines = PAGE[PAGE.index(f"\n| {heading} |") + 1 :].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_presentation_contexts_are_those_of_a_receiver(
    worklist: Worklist, tmp_path: Path
) -> None:
    """Abstract syntaxes with their names, transfer syntaxes in their order, and the roles."""
    receiver = Receiver("TRIAGE", ("127.0.0.1", 0), 4, 5.0, Spool(tmp_path / "spool"), worklist)
    syntaxes = [uid for _, uid, _ in table("transfer syntax")]
    meant = {
        "all": tuple(syntaxes),
        "uncompressed": tuple(syntaxes[:4]),
        "explicit and implicit": tuple(syntaxes[:2]),
    }
    documented = {uid: meant[which] for _, uid, which, _ in table("abstract syntax")}
    assert documented == receiver.contexts
    assert {uid.name for uid in receiver.contexts} == {row[0] for row in table("abstract syntax")}
    assert {row[3] for row in table("abstract syntax")} == {"SCP"}

    port = receiver.start()
    try:
        for sop_class, offered in documented.items():
            for syntax in TRANSFER_SYNTAXES:
                with Console(port, contexts=[(sop_class, [str(syntax)])]) as console:
                    result = console.answer[console.answer.index(b"!\x00") + 6]
                assert (result == 0) is (syntax in offered), (sop_class, syntax.name)
    finally:
        receiver.stop()


def test_what_is_proposed_to_a_pacs_is_documented() -> None:
    """Abstract syntaxes with their names, and both transfer syntaxes of each."""
    pacs = Pacs(Destination("127.0.0.1", 104, "PACS"), "TRIAGE", 5.0)
    proposed: dict[tuple[str, str], set[str]] = {}
    for context in pacs.contexts:
        sop_class = UID(context.abstract_syntax)
        proposed.setdefault((sop_class.name, sop_class), set()).update(context.transfer_syntax)
    both = {ExplicitVRLittleEndian, ImplicitVRLittleEndian}
    assert proposed == {
        (name, uid): both
        for name, uid, which in table("proposed abstract syntax")
        if which == "explicit and implicit"
    }


def test_the_decoders_are_those_of_the_proof() -> None:
    """Each syntax by its name, with the library that is to be installed."""
    for name, uid, library in table("transfer syntax"):
        syntax = next(each for each in TRANSFER_SYNTAXES if each == uid)
        assert LIBRARIES[syntax] == library
        if syntax != JPEG_PROGRESSIVE:  # which pydicom has no name for
            assert syntax.name == name


def test_every_status_is_documented() -> None:
    """Those that the two SCPs answer with, as their modules name them."""
    for module in ("scp.py", "commitment.py"):
        source = (ROOT / "triage" / module).read_text("utf-8")
        codes = re.findall(r"^[A-Z_]+ = 0x([0-9A-F]{4})$", source, re.MULTILINE)
        assert len(codes) > 4
        assert [code for code in codes if f"0x{code}" not in PAGE] == []


def test_the_figures_are_those_of_the_program() -> None:
    """Sizes, counts and limits."""
    for figure in (f"{MAXIMUM_PDU:,}", f"{LONGEST_PDU:,}", f"{MOST_ITEMS:,}", f"{ATTEMPTS} times"):
        assert figure in PAGE
    assert f"first {HEADER_BYTES // 1_000_000} MB" in PAGE
