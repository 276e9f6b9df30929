"""How often the gate's limits are wrong, as the table of docs/gate.md.

    python -m tests.benchmarks.gate

simulates exams with a known truth, 2,000 of each kind. Takes two minutes.
"""

from collections.abc import Callable

import click
import numpy as np

from training.paired import difference_of_aucs, difference_of_shares

EXAMS = 2000
MARGIN = 0.05


def shares(
    cases: int, discordant: float, loss: float, each: int
) -> Callable[[np.random.Generator], bool]:
    """Whether a loss of the margin is ruled out; half of a patient's cases go together."""
    lost, gained = (discordant + loss) / 2, (discordant - loss) / 2

    def passes(random: np.random.Generator) -> bool:
        together = np.repeat(random.random(cases // each), each)
        kinds = np.where(random.random(cases) < 0.5, together, random.random(cases))
        misses = kinds < lost
        gains = (kinds >= lost) & (kinds < lost + gained)
        patients = (np.arange(cases) // each).astype(str)
        found = difference_of_shares(~gains, ~misses, patients, np.ones(cases), 0.95)
        return found.low > -MARGIN

    return passes


def aucs(cases: int, gain: float, each: int) -> Callable[[np.random.Generator], bool]:
    """Whether the challenger is shown better; the champion's AUC is 0.95."""

    def passes(random: np.random.Generator) -> bool:
        def normal() -> np.ndarray:
            if each == 1:
                return random.standard_normal(cases)
            together = np.repeat(random.standard_normal(cases // each), each)
            return (together + random.standard_normal(cases)) / np.sqrt(2)

        labels = (np.arange(cases) < cases // 2).astype(np.int64)
        shared = normal() * np.sqrt(0.7)
        champion = 2.33 * labels + shared + normal() * np.sqrt(0.3)
        challenger = (2.33 + gain) * labels + shared + normal() * np.sqrt(0.3)
        patients = (np.arange(cases) // each).astype(str)
        found = difference_of_aucs(labels, champion, challenger, patients, np.ones(cases), 0.95)
        return found.low > 0.0

    return passes


def percent(passes: Callable[[np.random.Generator], bool]) -> str:
    """How often an exam is passed, in 100."""
    random = np.random.default_rng(0)
    return f"{100 * np.mean([passes(random) for _ in range(EXAMS)]):.1f}"


def main() -> None:
    """Print the table."""
    click.echo(
        "| rule | cases | discordant | wrongly passed of 100 | the same, two cases a patient | "
        "rightly passed of 100 |\n|---|---|---|---|---|---|"
    )
    for cases in (50, 100, 200, 400):
        for discordant in (0.05, 0.10, 0.20):
            cells = [
                percent(shares(cases, discordant, MARGIN, 1)),
                percent(shares(cases, discordant, MARGIN, 2)),
                percent(shares(cases, discordant, 0.0, 1)),
            ]
            click.echo(f"| sensitivity | {cases} | {discordant:.2f} | {' | '.join(cells)} |")
    for cases in (100, 200, 400):
        cells = [percent(aucs(cases, *truth)) for truth in ((0.0, 1), (0.0, 2), (0.5, 1))]
        click.echo(f"| AUC | {cases} | | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
