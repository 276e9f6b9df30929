"""Hostile files: mutations of valid ones, as receiver and worker read them."""

import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.fuzz import FOUND, Reader, originals
from tests.faults.tally import Tally, amount

SECONDS = 60.0
"""For one file, on a slow and busy machine."""

MEMORY = 2_500_000_000
"""Bytes for one file."""


@pytest.fixture
def readers() -> Iterator[list[Reader]]:
    """Processes that read cases."""
    made = [Reader(SECONDS) for _ in range(min(2, os.cpu_count() or 1))]
    yield made
    for reader in made:
        reader.end()


def test_mutated_files_are_settled_in_bounded_time_and_memory(
    readers: list[Reader], tally: Tally
) -> None:
    """No case runs on, none takes too much; a process that a decoder ends is counted."""
    count = amount(300, 20_000, "FAULTS_FILES")
    files = originals()
    assert len(files) > 20
    cases = [(files[number % len(files)], number // len(files)) for number in range(count)]
    random.Random(1).shuffle(cases)

    def run(reader: Reader, mine: list[tuple[Path, int]]) -> list[tuple[str, str, int]]:
        return [(f"{file.name} {number}", *reader.read(file, number)) for file, number in mine]

    with ThreadPoolExecutor(len(readers)) as pool:
        parts = [cases[number :: len(readers)] for number in range(len(readers))]
        done = [each for part in pool.map(run, readers, parts) for each in part]
    tally.fault("mutated files", count)
    tally.fault("ends of a reading process by a native decoder", sum("died" in d[1] for d in done))
    seen = Counter(outcome for _, outcome, _ in done)
    assert [each for each in done if "no end" in each[1]] == []
    assert [each for each in done if each[2] > MEMORY] == []
    assert [each for each in done if "kept, SCORING_ERROR" in each[1]] == []
    assert seen["kept, normalized"] > 0
    assert len(seen) > 5, "the mutations reach many ways"


def test_what_once_broke_something_is_settled(readers: list[Reader]) -> None:
    """The data sets that the fuzzers found; their names say transfer syntax and defect."""
    for file in sorted(FOUND.glob("*.bin")):
        outcome, memory = readers[0].read(file, 0)
        assert "SCORING_ERROR" not in outcome, file.name
        assert "no end" not in outcome, file.name
        assert "died" not in outcome, file.name
        assert memory < MEMORY, file.name
