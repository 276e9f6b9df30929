"""What everything costs with ten times the rows in the database."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count

from tests.benchmarks.cases import Amounts, Case
from tests.benchmarks.floors import milliseconds
from tests.benchmarks.lists import site
from tests.benchmarks.objects import SMALL, percentiles, radiograph
from triage.identity import Instance
from triage.scoring import Score
from triage.worklist import Arrival, Worklist

ITEMS = 100
"""Entered and scored in a round, one after the other."""


def growth(amounts: Amounts) -> Iterator[Case]:
    """Medians of a transaction or an answer, on SQLite, with many rows and with a tenth of them."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        sizes = (10 * amounts.rows, amounts.rows)
        names = ["ten times the rows", "the rows"]
        urls = [f"sqlite:///{name}/{size}.sqlite" for size in sizes]
        visitors = [
            stack.enter_context(site(url, size))[0] for url, size in zip(urls, sizes, strict=True)
        ]
        numbers = count(1)
        for what, step in {"receive": _received, "claim and record a score": _scored}.items():
            yield Case(
                what,
                "ms",
                {
                    who: lambda url=url, step=step: step(url, numbers)
                    for who, url in zip(names, urls, strict=True)
                },
            )
        pages = {
            "list, first page": ("/api/v1/items", {"limit": 100}),
            "list, unread": ("/api/v1/items", {"limit": 100, "unread": True}),
            "dashboard, 30 days": ("/api/v1/statistics", {"days": 30}),
        }
        for what, (path, asked) in pages.items():
            yield Case(
                what,
                "ms",
                {
                    who: lambda visitor=visitor, path=path, asked=asked: milliseconds(
                        lambda: visitor.get(path, params=asked).raise_for_status()
                    )
                    for who, visitor in zip(names, visitors, strict=True)
                },
            )


def _received(url: str, numbers: Iterator[int]) -> float:
    return _each(url, lambda worklist: worklist.receive(_arrival(next(numbers))))


def _scored(url: str, numbers: Iterator[int]) -> float:
    """Of what this measurement has received before, and once more of its own."""
    _received(url, numbers)

    def settle(worklist: Worklist) -> None:
        claim = worklist.claim("bench")
        assert claim is not None
        digits = f"{claim.item_id:016x}"
        assert worklist.scored(claim, Score(0.5, 0.4, "bench"), (), digits * 4, 0.5)

    return _each(url, settle)


def _each(url: str, step: Callable[[Worklist], object]) -> float:
    """The median, in milliseconds."""
    worklist = Worklist(url)
    took = []
    try:
        for _ in range(ITEMS):
            began = time.perf_counter()
            step(worklist)
            took.append(time.perf_counter() - began)
    finally:
        worklist.close()
    return percentiles(took)["p50"]


def _arrival(number: int) -> Arrival:
    made = radiograph(number, SMALL)
    return Arrival(
        Instance.of(made), str(made.file_meta.TransferSyntaxUID), "ROOM1", "127.0.0.1",
        f"{number:064x}", 39_000,
    )  # fmt: skip
