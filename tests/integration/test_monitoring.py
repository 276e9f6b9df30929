"""The names of metrics are documented, and what is set on them says what it should."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry

from tests.conftest import ROOT
from triage.app import METRICS_PORTS
from triage.gauges import Disks, Queues
from triage.health import Health, Port
from triage.telemetry import Telemetry
from triage.worklist import Worklist
from triage.worklist.schema import migrate, open_engine

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
PAGE = ROOT / "docs" / "metrics.md"
NAME = re.compile(r"\btriage_[a-z_]+\b")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every metric that the program has, as Prometheus calls it; histograms without a suffix."""
    url = f"sqlite:///{tmp_path_factory.mktemp('worklist') / 'worklist.sqlite'}"
    engine = open_engine(url, create=True)
    migrate(engine)
    engine.dispose()
    worklist = Worklist(url)
    registry: CollectorRegistry = Telemetry("score").registry
    registry.register(Disks({"home": Path("/")}))
    registry.register(Queues(worklist.gauges))
    Port(("127.0.0.1", 0), Health({}), registry).close()
    suffix = {"counter": "_total", "info": "_info"}
    found = {
        family.name + suffix.get(family.type, "")
        for family in registry.collect()
        if family.name.startswith("triage_")
    }
    worklist.close()
    return found


def expressions() -> list[str]:
    """Of the dashboard."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def used(text: str) -> set[str]:
    """The metrics in an expression; of a histogram its name alone."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in NAME.findall(text)}


def promtool(*arguments: str) -> None:
    ran = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_metric_is_documented_and_no_other(names: set[str]) -> None:
    """A row of the table each."""
    rows = set(re.findall(r"^\| `(triage_[a-z_]+)` \|", PAGE.read_text(), re.MULTILINE))
    assert rows == names


def test_every_part_s_port_is_documented() -> None:
    """And is another's of nobody."""
    text = PAGE.read_text()
    for role, number in METRICS_PORTS.items():
        told = f"+ {number}" if number else "`TRIAGE_METRICS_PORT`"
        assert f"| `{role}` | {told} |" in text, role
    assert len(set(METRICS_PORTS.values())) == len(METRICS_PORTS)


def test_every_alert_says_what_to_do_about_a_metric_that_there_is(names: set[str]) -> None:
    """Commands and settings in it are checked by eye; names are checked here."""
    rules = [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert used(rule["expr"]) <= names, rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert len(rule["annotations"]["action"]) > 60, rule["alert"]


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    """By time series made for each; every rule has a case in which it fires."""
    cases = RULES.with_name("alerts_test.yml")
    promtool("check", "rules", str(RULES))
    promtool("test", "rules", str(cases))
    fired = {
        check["alertname"]
        for case in yaml.safe_load(cases.read_text())["tests"]
        for check in case["alert_rule_test"]
        if check.get("exp_alerts")
    }
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    assert fired == {rule["alert"] for rule in rules}


def test_the_dashboard_is_what_grafana_knows() -> None:
    """Read into Grafana's own types and written again, nothing of it is lost."""
    told = json.loads(DASHBOARD.read_text())
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(told)))
    assert lost(told, again) == []
    numbers = [panel["id"] for panel in told["panels"]]
    assert len(numbers) == len(set(numbers))


def lost(told: Any, again: Any, place: str = "") -> list[str]:
    """Keys and values that are not there any more."""
    if isinstance(told, dict):
        if not isinstance(again, dict):
            return [place]
        return [
            found
            for key, value in told.items()
            for found in lost(value, again.get(key), f"{place}.{key}")
        ]
    if isinstance(told, list):
        if not isinstance(again, list) or len(told) != len(again):
            return [place]
        pairs = enumerate(zip(told, again, strict=True))
        return [found for n, pair in pairs for found in lost(*pair, f"{place}[{n}]")]
    return [] if told == again else [place]


def test_every_expression_of_the_dashboard_parses_and_names_what_there_is(
    names: set[str], tmp_path: Path
) -> None:
    """As recording rules, which promtool parses."""
    found = expressions()
    assert set().union(*map(used, found)) <= names
    rules = [{"record": f"panel:{n}", "expr": expr} for n, expr in enumerate(found)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(file))


def test_every_metric_is_on_the_dashboard_or_sets_off_an_alert(names: set[str]) -> None:
    """What nobody looks at need not be told."""
    seen = set().union(*map(used, expressions())) | used(RULES.read_text())
    assert names - seen == {"triage_build_info"}
