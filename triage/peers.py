"""Who may associate with us, and where those are who want to be called back."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def valid_ae_title(value: str) -> str:
    """PS3.5 6.2, VR AE: 1 to 16 characters, no backslash or control character."""
    title = value.strip(" ")
    if not 1 <= len(title) <= 16 or "\\" in title or not title.isascii() or not title.isprintable():
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return title


@dataclass(frozen=True, slots=True)
class Peer:
    """An entry of the allow-list: an AE title, a network, or both.

    Attributes
    ----------
    ae_title : str
        The calling AE title; empty for any.
    network : IPv4Network, IPv6Network or None
        Where it calls from; None for anywhere.
    """

    ae_title: str
    network: Network | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``AETITLE``, ``AETITLE@ADDRESS``, ``AETITLE@CIDR`` or ``*@CIDR``.

        Raises
        ------
        ValueError
            It is none of them.
        """
        title, at, place = text.strip().rpartition("@")
        if not at:
            title, place = place, ""
        if title == "*":
            if not place:
                raise ValueError("* needs a network: *@0.0.0.0/0 lets everybody in over IPv4")
            title = ""
        else:
            title = valid_ae_title(title)
        try:
            network = ipaddress.ip_network(place) if at else None
        except ValueError as error:
            raise ValueError(
                f"what follows @ is an address or a network such as 192.0.2.0/24 ({error})"
            ) from None
        return cls(title, network)

    def matches(self, ae_title: str, address: Address) -> bool:
        """Whether a caller is meant."""
        return self.ae_title in {"", ae_title} and (self.network is None or address in self.network)

    def __str__(self) -> str:
        """As an administrator writes it."""
        return (self.ae_title or "*") + (f"@{self.network}" if self.network else "")


@dataclass(frozen=True, slots=True)
class Requester:
    """Where the reports of Storage Commitment go that an AE title asks for.

    Attributes
    ----------
    ae_title : str
    host : str
    port : int
    """

    ae_title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``AETITLE@HOST:PORT``; an IPv6 address stands in brackets.

        Raises
        ------
        ValueError
            It is something else.
        """
        title, at, place = text.strip().rpartition("@")
        host, colon, port = place.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (at and colon and host and port.isascii() and port.isdigit()):
            raise ValueError("write AETITLE@HOST:PORT")
        if not 1 <= int(port) <= 65_535:
            raise ValueError("a port is 1 to 65535")
        return cls(valid_ae_title(title), host, int(port))

    def __str__(self) -> str:
        """As an administrator writes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.ae_title}@{host}:{self.port}"


def is_loopback(address: str) -> bool:
    """Whether a caller is on this machine."""
    return _address(address).is_loopback


def admits(peers: Iterable[Peer], ae_title: str, address: str) -> bool:
    """Whether an allow-list lets a caller in; an empty one admits this machine only."""
    listed = tuple(peers)
    if not listed:
        return is_loopback(address)
    where = _address(address)
    return any(each.matches(ae_title, where) for each in listed)


def _address(text: str) -> Address:
    """An address without its scope; IPv4 in IPv6 as IPv4 (RFC 4291 2.5.5.2)."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
