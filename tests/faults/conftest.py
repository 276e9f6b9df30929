"""The fault suite's two forms, and the counts that it prints.

``FAULTS=full`` runs what ``make faults`` runs; without it a short form of the same tests does,
as a part of ``make test``.
"""

import os
from collections import Counter

import pytest

from tests.faults.invariants import Findings

FULL = os.environ.get("FAULTS", "short") == "full"


class Tally:
    """Counts over the whole run."""

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self.images = self.lost = self.duplicated = 0

    def fault(self, kind: str, count: int = 1) -> None:
        """Count injected faults."""
        self.faults[kind] += count

    def holds(self, findings: Findings, *, again: bool = False) -> None:
        """Count a check's images, unless they were, and fail where it found anything."""
        self.images += 0 if again else findings.images
        self.lost += len(findings.lost)
        self.duplicated += len(findings.duplicated)
        assert findings.broken == []

    def lines(self) -> list[str]:
        """What is printed."""
        kinds = [f"  {count:>8,} {kind}" for kind, count in sorted(self.faults.items())]
        total = (
            f"faults injected {self.faults.total():,}, images sent {self.images:,}, "
            f"lost {self.lost}, duplicated {self.duplicated}"
        )
        return [total, *kinds]


_TALLY = pytest.StashKey[Tally]()


def amount(short: int, full: int, variable: str = "") -> int:
    """How often: as a variable says, else by the suite's form."""
    given = os.environ.get(variable, "") if variable else ""
    return int(given) if given else (full if FULL else short)


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    """The counts of this run."""
    stash = request.config.stash
    stash.setdefault(_TALLY, Tally())
    return stash[_TALLY]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts."""
    found = terminalreporter.config.stash.get(_TALLY, None)
    if found is not None and found.faults:
        terminalreporter.section(f"faults ({'full' if FULL else 'short'} form)")
        for line in found.lines():
            terminalreporter.write_line(line)
