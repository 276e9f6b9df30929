"""The gate of ``make bench``: ratios in rounds, a tolerance, three tries, a record."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.benchmarks import __main__ as bench
from tests.benchmarks import cases
from tests.benchmarks.cases import Amounts, Case, Outcome, Run


def _case(ours: Iterator[float], peer: float = 10.0, **more: bool) -> Case:
    return Case("work", "s", {"ours": lambda: next(ours), "peer": lambda: peer}, **more)


def test_the_ratio_is_the_median_of_those_of_the_rounds() -> None:
    """Not the ratio of the medians: what slows a round slows both."""
    peer = iter([10.0, 400.0, 30.0])
    ways = {"ours": iter([5.0, 100.0, 30.0]).__next__, "peer": peer.__next__}
    outcome = Outcome.of(Case("work", "s", ways), 3)
    assert outcome.ratios() == {"work | peer": 2.0}


def test_more_may_be_better() -> None:
    outcome = Outcome.of(_case(iter([30.0]), more_is_better=True), 1)
    assert outcome.ratios() == {"work | peer": 3.0}


def test_each_quantity_has_its_ratio() -> None:
    ways = {"ours": lambda: {"p50": 1.0, "p95": 4.0}, "peer": lambda: {"p50": 2.0, "p95": 2.0}}
    assert Outcome.of(Case("wait", "ms", ways), 2).ratios() == {
        "wait | p50 | peer": 2.0,
        "wait | p95 | peer": 0.5,
    }


def test_another_begins_each_round() -> None:
    order: list[str] = []
    ways = {who: lambda who=who: order.append(who) or 1.0 for who in "abc"}
    Outcome.of(Case("work", "s", ways), 3)
    assert "".join(order) == "abcbcacab"


@pytest.mark.parametrize(("ours", "tries"), [([5.0], 1), ([9.0, 5.0], 2), ([9.0, 9.0, 5.0], 3)])
def test_what_is_behind_is_tried_thrice(ours: list[float], tries: int) -> None:
    taken = iter(ours)

    def measurement(_: Amounts) -> Iterator[Case]:
        """Text."""
        yield _case(taken)

    known = {"all | work | peer": 2.0}
    run = cases.run("all", measurement, Amounts(rounds=1), known)
    assert not list(run.complaints(known))
    assert not list(taken), f"not {tries} tries"


def test_the_tolerance_is_a_quarter() -> None:
    known = {"all | work | peer": 2.0}
    assert not cases.behind({"work | peer": 1.51}, "all", known)
    assert cases.behind({"work | peer": 1.49}, "all", known) == ["work | peer"]
    assert not cases.behind({"other | peer": 0.1}, "all", known)  # was never recorded


def test_what_is_no_longer_measured_is_told() -> None:
    (line,) = Run("all", {}).complaints({"all | work | peer": 2.0, "other | work | peer": 2.0})
    assert line == "all | work | peer: recorded, and no longer measured"


def test_a_record_replaces_its_own_measurements_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "record.json"
    monkeypatch.setattr(cases, "RECORD", file)
    file.write_text(json.dumps({"all | gone | peer": 1.0, "other | work | peer": 1.0}))
    cases.keep([Run("all", {"work | peer": 2.0})])
    assert cases.recorded() == {"all | work | peer": 2.0, "other | work | peer": 1.0}


def test_a_run_that_is_behind_ends_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measurement(_: Amounts) -> Iterator[Case]:
        """Text."""
        yield _case(iter([5.0] * 9), peer=speed)

    monkeypatch.setattr(cases, "RECORD", tmp_path / "record.json")
    monkeypatch.setitem(bench.MEASUREMENTS, "startup", measurement)
    speed = 20.0
    asked = ["startup", "--rounds", "1"]
    assert CliRunner().invoke(bench.main, [*asked, "--record"]).exit_code == 0
    assert CliRunner().invoke(bench.main, asked).exit_code == 0
    speed = 10.0
    behind = CliRunner().invoke(bench.main, asked)
    assert behind.exit_code == 1
    assert "BEHIND startup | work | peer: 2.00 times better, 3 times tried" in behind.output
