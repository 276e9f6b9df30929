"""The fault suite's two forms, and the counts that it prints.

``FAULTS=full`` runs what ``make faults`` runs; without it a short form of the same tests does,
as a part of ``make test``.
"""

import os
from collections import Counter
from dataclasses import dataclass, field

import pytest

FULL = os.environ.get("FAULTS", "short") == "full"

PROPERTY = "faults"
"""Under this name a test's report carries its counts, also from one process to another."""


def amount(short: int, full: int, variable: str = "") -> int:
    """How often: as a variable says, else by the suite's form."""
    given = os.environ.get(variable, "") if variable else ""
    return int(given) if given else (full if FULL else short)


@dataclass
class Findings:
    """What a check saw; every list is empty where the promises hold."""

    images: int = 0
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)
    undelivered: list[str] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)

    @property
    def broken(self) -> list[str]:
        """Every broken promise in a line."""
        kinds = ("lost", "duplicated", "unsettled", "undelivered", "traces")
        return [f"{kind}: {told}" for kind in kinds for told in getattr(self, kind)]


class Tally:
    """The counts of a test, or of several."""

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self.totals = Counter(images=0, lost=0, duplicated=0)

    def fault(self, kind: str, count: int = 1) -> None:
        """Count injected faults."""
        self.faults[kind] += count

    def holds(self, findings: Findings, *, again: bool = False) -> None:
        """Count a check's images, unless they were, and fail where it found anything."""
        self.totals["images"] += 0 if again else findings.images
        self.totals["lost"] += len(findings.lost)
        self.totals["duplicated"] += len(findings.duplicated)
        assert not findings.broken, "\n".join(findings.broken)

    def lines(self) -> list[str]:
        """What is printed."""
        kinds = [f"  {count:>8,} {kind}" for kind, count in sorted(self.faults.items())]
        total = (
            f"faults injected {self.faults.total():,}, images sent {self.totals['images']:,}, "
            f"lost {self.totals['lost']}, duplicated {self.totals['duplicated']}"
        )
        return [total, *kinds]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts of all tests, whichever process ran them."""
    tally = Tally()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "teardown":
                for faults, totals in (v for k, v in report.user_properties if k == PROPERTY):
                    tally.faults.update(faults)
                    tally.totals.update(totals)
    if tally.faults:
        terminalreporter.section(f"faults ({'full' if FULL else 'short'} form)")
        for line in tally.lines():
            terminalreporter.write_line(line)
