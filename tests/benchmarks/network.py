"""How many nodes a network of hospitals needs: a queueing simulation fed with measured steps.

    python -m tests.benchmarks.network STEPS.json    # made by python -m tests.benchmarks.steps

Exams come at random, more in the morning; each takes the processor times of STEPS.json on a
core of some node: receiving before scoring before delivering, as the parts' priorities do. At
the peak one node dies for ten minutes: what it was doing is done again, scoring after its lease
of 60 s. Told is the time from the console's image to its score.
"""

import json
import random
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import simpy

PER_DAY = 250
"""Chest radiographs of a hospital; an assumption."""
PEAK = 2.5
"""Times the mean rate, at ten in the morning; an assumption."""
CORES = 2
HOURS = (8.0, 12.0)
DEATH, AWAY = 10.0 * 3600, 600.0
LEASE = 60.0
GOAL = 10.0
"""Seconds within which 99 of 100 are to be scored, one node being dead for ten minutes."""


@dataclass
class Costs:
    """Seconds of a core for one image."""

    receive: float
    score: float
    deliver: float

    @classmethod
    def of(cls, steps: dict[str, Any]) -> "Costs":
        """From the measured steps."""

        def seconds(*names: str) -> float:
            return float(sum(steps[name]["cpu_ms"] for name in names)) / 1000

        results = ("explain", "build report", "send report", "build picture", "send picture")
        return cls(seconds("receive"), seconds("claim and score"), seconds(*results))

    @property
    def whole(self) -> float:
        """All of it."""
        return self.receive + self.score + self.deliver


@dataclass
class Network:
    """Nodes that exams pass through."""

    costs: Costs
    nodes: int
    hospitals: int
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    waits: list[float] = field(default_factory=list)
    busy: float = 0.0

    def run(self) -> None:
        """Simulate the morning."""
        self.env = simpy.Environment(HOURS[0] * 3600)
        self.pool = simpy.PriorityStore(self.env)
        for number in range(self.nodes * CORES):
            self.env.process(self._core(number))
        self.env.process(self._arrivals())
        self.env.run(HOURS[1] * 3600 + 1800)

    def _arrivals(self) -> Any:
        most = self.hospitals * PER_DAY / 86_400 * PEAK
        while self.env.now < HOURS[1] * 3600:
            yield self.env.timeout(self.chance.expovariate(most))
            hour = self.env.now / 3600
            # Rises from eight to ten and falls to noon, from and to 60% of the peak.
            if self.chance.random() < 1 - 0.4 * abs(hour - 10) / 2:
                self._put(0, self.env.now)

    def _put(self, stage: int, came: float) -> None:
        self.pool.put(simpy.PriorityItem((stage, self.env.now, self.chance.random()), came))

    def _core(self, number: int) -> Any:
        """One core, which takes the most urgent step of any exam; node 0 dies at the peak."""
        mortal = number < CORES
        times = (self.costs.receive, self.costs.score, self.costs.deliver)
        while True:
            taken = yield self.pool.get()
            stage, came = taken.priority[0], taken.item
            took = times[stage] * self.chance.uniform(0.7, 1.6)
            if mortal and DEATH <= self.env.now < DEATH + AWAY:  # it was idle when it died
                self.pool.put(taken)
                yield self.env.timeout(DEATH + AWAY - self.env.now)
                continue
            if mortal and self.env.now < DEATH < self.env.now + took:
                self.env.process(self._again(stage, came))
                yield self.env.timeout(DEATH + AWAY - self.env.now)
                continue
            yield self.env.timeout(took)
            self.busy += took
            if stage == 1:
                self.waits.append(self.env.now - came)
            if stage < 2:
                self._put(stage + 1, came)

    def _again(self, stage: int, came: float) -> Any:
        yield self.env.timeout(LEASE)
        self._put(stage, came)


def morning(costs: Costs, hospitals: int, nodes: int) -> Network:
    """A morning of so many hospitals on so many nodes."""
    made = Network(costs, nodes, hospitals)
    made.run()
    return made


@click.command()
@click.argument("steps", type=click.Path(path_type=Path, exists=True))
def main(steps: Path) -> None:
    """Print the table."""
    told = json.loads(steps.read_text())
    costs, size = Costs.of(told["steps"]), told["bytes"]
    click.echo(f"{costs.whole * 1000:.0f} ms of a core for each image\n")
    click.echo("| hospitals | nodes | images/s at the peak | cores busy | median | 99 of 100 | "
               "longest | Mbit/s in | TB a year | million rows a year |\n"
               "|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for hospitals in (1, 50, 500):
        rate = hospitals * PER_DAY / 86_400 * PEAK
        for nodes in range(1, 17):
            found = morning(costs, hospitals, nodes)
            ninety_nine = statistics.quantiles(found.waits, n=100, method="inclusive")[-1]
            busy = found.busy / ((HOURS[1] - HOURS[0]) * 3600 * nodes * CORES)
            click.echo(
                f"| {hospitals} | {nodes} | {rate:.2f} | {busy:.0%} | "
                f"{statistics.median(found.waits):.2f} s | {ninety_nine:.1f} s | "
                f"{max(found.waits):.0f} s | {rate * size['image'] * 8 / 1e6:.0f} | "
                f"{hospitals * PER_DAY * 365 * size['spool'] / 1e12:.1f} | "
                f"{hospitals * PER_DAY * 365 / 1e6:.1f} |"
            )
            if nodes > 1 and ninety_nine < GOAL:
                break


if __name__ == "__main__":
    main()
