"""Receiving beside DCMTK's storescp and Orthanc, and what it holds in memory."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.benchmarks import peers
from tests.benchmarks.cases import Amounts, Case
from tests.benchmarks.objects import LARGE, SMALL, Address, files, sent, sent_singly, split

PEERS: dict[str, peers.Peer] = {
    "ours": peers.receiver,
    "storescp": peers.storescp,
    "storescp, tuned": peers.tuned,
    "Orthanc": peers.orthanc,
}

ALONE, TOGETHER = {"storescp": 2.0, "Orthanc": 3.5}, {"storescp": 1.0, "Orthanc": 1.0}

RECEIVER_MB = 300.0


def receiving(amounts: Amounts) -> Iterator[Case]:
    """The same files from the same sender, into empty stores. Ours alone waits for the disk."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large = files(folder / "large", amounts.large, LARGE)
        for parts in (1, 4, 16):
            wanted = ALONE if parts == 1 else TOGETHER
            yield _case(f"10 MB, {parts} associations", split(large, parts), wanted)
        yield Case(
            "peak memory, 16 associations of 10 MB",
            "MB",
            {"ours": lambda: _memory(split(large, 16)), "allowed": lambda: RECEIVER_MB},
            wanted={"allowed": 1.0},
        )
        small = files(folder / "small", 10 * amounts.small, SMALL)
        few = small[: amounts.small]
        yield _case("39 KB, 1 association", [few], {})
        yield Case(
            "39 KB, an association for each",
            "objects/s",
            {
                peer: lambda start=start: len(few) / _took(start, lambda to: sent_singly(to, few))
                for peer, start in PEERS.items()
            },
            more_is_better=True,
        )
        yield _case("39 KB, 10 associations, ten times as many", split(small, 10), {})


def _case(what: str, shares: Sequence[Sequence[Path]], wanted: dict[str, float]) -> Case:
    count = sum(map(len, shares))
    return Case(
        what,
        "objects/s",
        {
            peer: lambda start=start: count / _took(start, lambda to: sent(to, shares))
            for peer, start in PEERS.items()
        },
        more_is_better=True,
        wanted=wanted,
    )


def _took(start: peers.Peer, send: Callable[[Address], float]) -> float:
    """Seconds; the first object finds everything cold."""
    with tempfile.TemporaryDirectory() as folder, start(Path(folder)) as running:
        return send(running.address)


def _memory(shares: Sequence[Sequence[Path]]) -> float:
    with (
        tempfile.TemporaryDirectory() as folder,
        peers.service(Path(folder), "--roles", "receive") as ours,
    ):
        sent(Address(ours.port, "TRIAGE"), shares)
        assert ours.process is not None
        return peers.peak_memory(ours.process.pid)
