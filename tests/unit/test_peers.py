"""The allow-list, and where reports of Storage Commitment go."""

import pytest

from triage.peers import Peer, Requester, admits


@pytest.mark.parametrize(
    ("entry", "ae_title", "address", "admitted"),
    [
        ("CR1", "CR1", "192.0.2.7", True),
        ("CR1", "CR1", "2001:db8::7", True),
        ("CR1", "CR2", "192.0.2.7", False),
        ("CR1", "cr1", "192.0.2.7", False),
        ("CR1", "CR1", "127.0.0.1", True),
        ("CR1@192.0.2.7", "CR1", "192.0.2.7", True),
        ("CR1@192.0.2.7", "CR1", "::ffff:192.0.2.7", True),
        ("CR1@192.0.2.7", "CR1", "192.0.2.8", False),
        ("CR1@192.0.2.7", "CR2", "192.0.2.7", False),
        ("CR1@192.0.2.7", "CR1", "127.0.0.1", False),
        ("CR1@192.0.2.0/24", "CR1", "192.0.2.255", True),
        ("CR1@192.0.2.0/24", "CR1", "192.0.3.0", False),
        ("CR1@192.0.2.0/24", "CR1", "2001:db8::7", False),
        ("*@192.0.2.0/24", "ANY", "192.0.2.9", True),
        ("*@192.0.2.0/24", "ANY", "198.51.100.9", False),
        ("*@0.0.0.0/0", "ANY", "198.51.100.9", True),
        ("*@2001:db8::/32", "ANY", "2001:db8:1::7", True),
        ("*@fe80::/10", "ANY", "fe80::1%eth0", True),
        ("CR@WARD@192.0.2.7", "CR@WARD", "192.0.2.7", True),
        (" CR1 @192.0.2.7", "CR1", "192.0.2.7", True),
    ],
)
def test_an_entry_admits_whom_it_names(
    entry: str, ae_title: str, address: str, *, admitted: bool
) -> None:
    """AE titles by letter, addresses by number."""
    assert admits([Peer.parse(entry)], ae_title, address) is admitted
    assert admits([Peer.parse("OTHER@203.0.113.1"), Peer.parse(entry)], ae_title, address) is (
        admitted
    )


def test_an_empty_list_admits_this_machine_only() -> None:
    """IPv4 and IPv6, and IPv4 in IPv6."""
    for address in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert admits([], "ANY", address)
    for address in ("192.0.2.7", "0.0.0.0", "::", "fe80::1%eth0", "::ffff:192.0.2.7"):
        assert not admits([], "ANY", address)


@pytest.mark.parametrize("entry", ["CR1", "CR1@192.0.2.7/32", "*@2001:db8::/32", "*@192.0.2.0/24"])
def test_an_entry_is_shown_as_it_is_written(entry: str) -> None:
    """And read again."""
    assert str(Peer.parse(entry)) == entry
    assert Peer.parse(str(Peer.parse(entry))) == Peer.parse(entry)


@pytest.mark.parametrize(
    "entry",
    ["", "*", "@192.0.2.7", "CR1@", "CR1@host", "CR1@192.0.2.7/33", "CR1@192.0.2.7/24",
     "SEVENTEEN-LETTERS", "CR\\1", "CR\x001", "*@*"],
)  # fmt: skip
def test_what_is_no_entry_is_refused(entry: str) -> None:
    """Rather than understood in some way."""
    with pytest.raises(ValueError, match=r"AE title|network"):
        Peer.parse(entry)


def test_a_requester_is_read_and_shown() -> None:
    """Names, IPv4 and IPv6."""
    for entry in ("PACS@pacs.example.org:104", "CR@1@192.0.2.7:11112", "PACS@[2001:db8::1]:104"):
        assert str(Requester.parse(entry)) == entry
    assert Requester.parse("PACS@[::1]:104") == Requester("PACS", "::1", 104)


@pytest.mark.parametrize(
    "entry", ["", "PACS", "PACS@host", "PACS@:104", "@host:104", "PACS@host:0", "PACS@host:65536",
              "PACS@host:x", "SEVENTEEN-LETTERS@host:104"],
)  # fmt: skip
def test_what_is_no_requester_is_refused(entry: str) -> None:
    """In words."""
    with pytest.raises(ValueError, match=r"AE title|AETITLE@HOST:PORT|port"):
        Requester.parse(entry)
