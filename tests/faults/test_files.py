"""Hostile files: mutations of valid ones, as receiver and worker read them."""

import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
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


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is made for Linux on x86_64")
def test_what_coverage_leads_to_is_settled(tmp_path: Path, tally: Tally) -> None:
    """libFuzzer looks for new ways through the pixels; where native code dies it goes on."""
    left, crashes = amount(200, 200_000, "FAULTS_GUIDED"), 0
    (corpus := tmp_path / "corpus").mkdir()
    while left > 0:
        told = (tmp_path / "log").open("w+")
        with told:
            done = subprocess.run(
                [
                    sys.executable, "-m", "tests.faults.guided", str(corpus), f"-runs={left}",
                    f"-seed={crashes + 1}", f"-artifact_prefix={tmp_path}/",
                    f"-timeout={SECONDS:g}", f"-rss_limit_mb={MEMORY // 1_000_000}",
                ],
                stdout=told, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
            told.seek(0)
            log = told.read()
        ran = max([1, *map(int, re.findall(r"^#(\d+)\t", log, re.MULTILINE))])
        tally.fault("mutated data sets, guided by coverage", ran)
        if done.returncode == 0:
            break
        assert "deadly signal" in log, log[-3_000:]
        left, crashes = left - ran, crashes + 1
    tally.fault("ends of a reading process by a native decoder", crashes)


def test_what_once_broke_something_is_settled(readers: list[Reader]) -> None:
    """The data sets that the fuzzers found; their names say transfer syntax and defect."""
    for file in sorted(FOUND.glob("*.bin")):
        outcome, memory = readers[0].read(file, 0)
        assert "SCORING_ERROR" not in outcome, file.name
        assert "no end" not in outcome, file.name
        assert "died" not in outcome, file.name
        assert memory < MEMORY, file.name
