"""What all measurements share: cases whose ways take turns, a table, ratios, and the record.

A measurement is a function that yields cases. A case compares our way, the first, with
others: a peer, a floor under it, what is allowed, or the same with fewer rows. In each round
every way is taken once, the rounds begin with another one in turn, and what counts is the
median over the rounds of how many times better ours was than the other in the same round:
what else the machine does at that time slows both. Only these ratios go into the record, and
into the gate; seconds would tell which machine it was.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click

RECORD = Path(__file__).with_name("record.json")
"""The ratios that the gate holds a run against."""

TOLERANCE, TRIES = 0.25, 3
"""A ratio may be worse by so much; a case that is behind is tried so often in all."""

Measured = float | Mapping[str, float]
"""One quantity, or several by name."""

HEAD = (
    "| what | who | median | range | rounds | ours is so many times better | wanted |\n"
    "|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Amounts:
    """How much of everything.

    Attributes
    ----------
    rounds : int
        Of each case.
    large, small : int
        Objects of 10 MB and of 39 KB that are received in a round.
    exams : int
        Radiographs of 10 MB from console to flag, and in a measurement of latency.
    rows : int
        In the smaller database; the larger has ten times as many.
    """

    rounds: int = 5
    large: int = 48
    small: int = 1_000
    exams: int = 60
    rows: int = 10_000


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes
    ----------
    what : str
        Names it in the table and, with the other's name, in the record.
    unit : str
    ways : mapping of str to callable
        Ours first. Each call measures once.
    more_is_better : bool
    wanted : mapping of str to float
        By the other's name: so many times better ours is to be. Shown, not asserted.
    rounds : int, optional
        Instead of the run's.
    """

    what: str
    unit: str
    ways: Mapping[str, Callable[[], Measured]]
    more_is_better: bool = False
    wanted: Mapping[str, float] = field(default_factory=dict)
    rounds: int | None = None


Measurement = Callable[[Amounts], Iterator[Case]]


@dataclass(frozen=True)
class Outcome:
    """What a case came to: values by quantity and way, one of each round."""

    case: Case
    values: Mapping[str, Mapping[str, list[float]]]

    @classmethod
    def of(cls, case: Case, rounds: int) -> "Outcome":
        """Take all ways in turns."""
        names = list(case.ways)
        values: dict[str, dict[str, list[float]]] = {}
        for number in range(case.rounds or rounds):
            first = number % len(names)
            for who in names[first:] + names[:first]:
                measured = case.ways[who]()
                for quantity, value in (
                    measured.items() if isinstance(measured, Mapping) else [("", measured)]
                ):
                    into = values.setdefault(quantity, {name: [] for name in names})
                    into[who].append(value)
        return cls(case, values)

    def ratios(self) -> dict[str, float]:
        """How many times better ours is, by what is compared."""
        return {
            self._key(quantity, who): self._better(of, who)
            for quantity, of in self.values.items()
            for who in list(of)[1:]
        }

    def rows(self) -> Iterator[str]:
        """Lines of a Markdown table."""
        for quantity, of in self.values.items():
            for who, values in of.items():
                first = who == next(iter(of))
                wanted = self.case.wanted.get(who)
                cells = (
                    f"{self.case.what}: {quantity}" if quantity else self.case.what,
                    who,
                    f"{_short(statistics.median(values))} {self.case.unit}",
                    f"{_short(min(values))} to {_short(max(values))}",
                    str(len(values)),
                    "" if first else f"{self._better(of, who):.2f}",
                    "" if wanted is None else f"{wanted:g}",
                )
                yield f"| {' | '.join(cells)} |"

    def _better(self, of: Mapping[str, list[float]], who: str) -> float:
        pairs = zip(next(iter(of.values())), of[who], strict=True)
        if self.case.more_is_better:
            return statistics.median(ours / other for ours, other in pairs)
        return statistics.median(other / ours for ours, other in pairs)

    def _key(self, quantity: str, who: str) -> str:
        return " | ".join(part for part in (self.case.what, quantity, who) if part)


def run(
    name: str, measurement: Measurement, amounts: Amounts, record: Mapping[str, float]
) -> "Run":
    """Measure, print the table, and try again what is behind the record."""
    click.echo(f"\n## {name}\n\n{measurement.__doc__}\n\n{HEAD}")
    found: dict[str, float] = {}
    for case in measurement(amounts):
        best: dict[str, float] = {}
        for _ in range(TRIES):
            outcome = Outcome.of(case, amounts.rounds)
            for row in outcome.rows():
                click.echo(row)
            for key, ratio in outcome.ratios().items():
                best[key] = max(ratio, best.get(key, ratio))
            if not behind(best, name, record):
                break
        found |= best
    return Run(name, found)


@dataclass(frozen=True)
class Run:
    """The ratios of one measurement."""

    name: str
    ratios: Mapping[str, float]

    def complaints(self, record: Mapping[str, float]) -> Iterator[str]:
        """What is behind the record, or no longer measured; in words."""
        for key in behind(self.ratios, self.name, record):
            entry = f"{self.name} | {key}"
            yield (
                f"{entry}: {self.ratios[key]:.2f} times better, {TRIES} times tried; recorded is "
                f"{record[entry]:.2f}, allowed {record[entry] * (1 - TOLERANCE):.2f}"
            )
        measured = {f"{self.name} | {key}" for key in self.ratios}
        for entry in record:
            if entry.startswith(f"{self.name} | ") and entry not in measured:
                yield f"{entry}: recorded, and no longer measured"


def behind(ratios: Mapping[str, float], name: str, record: Mapping[str, float]) -> list[str]:
    """The keys whose ratio is worse than the record by more than the tolerance."""
    return [
        key
        for key, ratio in ratios.items()
        if ratio < record.get(f"{name} | {key}", 0.0) * (1 - TOLERANCE)
    ]


def recorded() -> dict[str, float]:
    """The record; empty if there is none."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def keep(runs: Iterable[Run]) -> None:
    """Write what was measured into the record, in the place of what it had of it before."""
    runs = list(runs)
    names = tuple(f"{run.name} | " for run in runs)
    kept = {key: ratio for key, ratio in recorded().items() if not key.startswith(names)}
    kept |= {f"{run.name} | {key}": round(v, 3) for run in runs for key, v in run.ratios.items()}
    RECORD.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


def _short(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
