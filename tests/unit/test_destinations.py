"""Destinations in the settings: strict, explained in one line, and silent about secrets."""

import json
from pathlib import Path
from typing import Any

import pytest

from triage.config import Config, DicomDestination, Hl7Destination, WebhookDestination
from triage.errors import ConfigError

PACS = {"kind": "dicom", "name": "pacs", "host": "h", "port": 104, "ae_title": "PACS"}
RIS = {"kind": "hl7", "name": "ris", "host": "h", "port": 2575}
HOOK = {"kind": "webhook", "name": "hook", "url": "https://h/x?key=s3cret", "secret_file": "f"}


def read(*entries: Any) -> Config:
    """The configuration with these destinations in the variable."""
    return Config.read({"TRIAGE_DESTINATIONS": json.dumps(entries)}, Path("absent"))


def test_all_kinds_are_read_from_the_variable() -> None:
    """As JSON, in their order."""
    config = read(PACS, RIS, HOOK)
    pacs, ris, hook = config.destinations
    assert isinstance(pacs, DicomDestination)
    assert isinstance(ris, Hl7Destination)
    assert isinstance(hook, WebhookDestination)
    assert (pacs.ae_title, ris.port, pacs.timeout_seconds) == ("PACS", 2575, 30)


def test_tables_are_read_from_the_file(tmp_path: Path) -> None:
    """``[[destinations]]``."""
    (tmp_path / "triage.toml").write_text(
        '[[destinations]]\nkind = "hl7"\nname = "ris"\nhost = "h"\nport = 2575\n'
    )
    (ris,) = Config.read({}, tmp_path).destinations
    assert ris.name == "ris"


@pytest.mark.parametrize("value", ["", " ", "[]"])
def test_none_is_the_default(value: str) -> None:
    """And may be said."""
    config = Config.read({"TRIAGE_DESTINATIONS": value}, Path("absent"))
    assert config.destinations == ()
    assert config.shown()["TRIAGE_DESTINATIONS"] == "none"


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([PACS, {**RIS, "kind": "hl8"}], "entry 2: kind must be"),
        ([{}], "entry 1: kind must be"),
        ([7], "entry 1: kind must be"),
        ([{**PACS, "port": 0}], "entry 1 (dicom): port"),
        ([{**PACS, "port": 65_536}], "entry 1 (dicom): port"),
        ([{**PACS, "ae_title": "A" * 17}], "entry 1 (dicom): ae_title"),
        ([{**PACS, "name": "a b"}], "entry 1 (dicom): name"),
        ([{**PACS, "name": ""}], "entry 1 (dicom): name"),
        ([{**PACS, "host": ""}], "entry 1 (dicom): host"),
        ([{**PACS, "timeout_seconds": 0}], "entry 1 (dicom): timeout_seconds"),
        ([{"kind": "dicom"}], "entry 1 (dicom): name: Field required"),
        ([{**PACS, "aetitle": "X"}], "entry 1 (dicom): unknown key aetitle"),
        ([{**RIS, "receiving_facility": "a\rb"}], "entry 1 (hl7): receiving_facility"),
        ([PACS, {**RIS, "name": "pacs"}], "two entries are named 'pacs'"),
        ([{**HOOK, "url": "ftp://h"}], "entry 1 (webhook): url: write https"),
        ([{**HOOK, "url": "https://"}], "entry 1 (webhook): url: write https"),
        ([{**HOOK, "url": "https://u:s3cret@h"}], "entry 1 (webhook): url: no user"),
        ([{**HOOK, "secret_variable": "V"}], "entry 1 (webhook): give either"),
        ([{**HOOK, "secret_file": None}], "entry 1 (webhook): give either"),
        ([{**HOOK, "secret": "s3cret"}], "entry 1 (webhook): unknown key secret"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_its_entry(entries: list[Any], told: str) -> None:
    """And no value, which may be a secret in the wrong place."""
    with pytest.raises(ConfigError) as caught:
        read(*entries)
    message = str(caught.value)
    assert message.startswith(f"bad value for TRIAGE_DESTINATIONS: {told}")
    assert "\n" not in message
    assert "s3cret" not in message


@pytest.mark.parametrize("value", ["{", "7", '"x"', "{}", "null"])
def test_the_variable_must_be_a_json_array(value: str) -> None:
    """Anything else is explained."""
    with pytest.raises(ConfigError, match="TRIAGE_DESTINATIONS: not"):
        Config.read({"TRIAGE_DESTINATIONS": value}, Path("absent"))


def test_they_are_shown_without_what_may_be_secret() -> None:
    """``triage config`` may be pasted into a ticket."""
    shown = read(PACS, RIS, HOOK).shown()["TRIAGE_DESTINATIONS"]
    assert shown == (
        "pacs (dicom: PACS at h port 104); ris (hl7: h port 2575); hook (webhook: https://h/x)"
    )
