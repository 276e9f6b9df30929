"""What a site may tell its fleet: how the model fares here, in numbers, of no patient.

Everything in it is a count, a rate, a model version or a date. No exam, patient, reader, console
or address is named, and no count is of fewer than :data:`LEAST` exams.
"""

from dataclasses import asdict
from typing import Any

from triage import __version__
from triage.registry import CHAMPION, Registry
from triage.worklist import Worklist

FORMAT = 1
DAYS = 30
LEAST = 10
"""Smaller numbers of exams or readings are told as none: they could be somebody's."""


def summary(worklist: Worklist, models: Registry, site: str) -> dict[str, Any]:
    """The last 30 days of a site.

    Parameters
    ----------
    worklist : Worklist
    models : Registry
    site : str
        The organization's name, as its administrator wrote it.

    Returns
    -------
    dict
        JSON values; ``docs/fleet.md`` describes them.
    """
    figures = worklist.statistics.figures(DAYS)
    days = [asdict(day) for day in figures.days]
    agreement = [asdict(day) for day in figures.agreement]
    aliases = models.aliases()
    return {
        "format": FORMAT,
        "program": __version__,
        "site": site,
        "days": DAYS,
        "models": {
            alias: {
                "version": version,
                "decisions": [
                    {"outcome": each.outcome, "against": each.champion, "on": each.at[:10]}
                    for each in models.decisions(version)
                ],
            }
            for alias, version in sorted(aliases.items())
        },
        "exams": {
            name: _enough(sum(day[name] for day in days))
            for name in ("received", "scored", "flagged", "not_scored", "failed")
        },
        "scores": [_enough(count) for count in figures.scores],
        "not_scored": {reason: _enough(count) for reason, count in figures.reasons.items()},
        "readings": {
            name: _enough(sum(day[name] for day in agreement))
            for name in (
                "flagged_confirmed",
                "flagged_rejected",
                "unflagged_confirmed",
                "unflagged_rejected",
            )
        },
        "drift": [
            {"measure": str(alarm.measure), "began": alarm.began_at.date().isoformat()}
            for alarm in worklist.drifts.alarms(all_of_them=True)
            if alarm.model_version == aliases.get(CHAMPION) and not alarm.console
        ],
    }


def _enough(count: int) -> int | None:
    return count if count >= LEAST else None
