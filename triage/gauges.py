"""What Prometheus is told of the whole installation: queues in the database, room on the disk."""

import datetime as dt
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from triage.errors import WorklistError
from triage.worklist.levels import Gauges, Levels

_PLAIN = {
    "unscored_items": ("unscored", "Exams that wait for their score; counted up to 100,000."),
    "oldest_unscored_seconds": ("unscored_seconds", "Age of the oldest of them; 0 if none waits."),
    "failed_items": ("failed", "Exams whose scoring broke: FAILED."),
    "flagged_unread_items": ("flagged_unread", "Flagged exams that nobody has read."),
    "oldest_flagged_unread_seconds": (
        "flagged_unread_seconds",
        "Age of the first of them in reading order; 0 if there is none.",
    ),
    "quiet_seconds": ("quiet_seconds", "Time since the newest exam came; 0 if none ever did."),
    "commitments_parked": ("commitments_parked", "Reports of Storage Commitment given up."),
    "drift_alarms": ("drift_alarms", "Alarms of drift that nobody has acknowledged."),
}
"""What is told of :class:`Levels`, by its metric."""

_PER_DESTINATION = {
    "deliveries_pending": "Deliveries that wait.",
    "deliveries_parked": "Deliveries that were given up until an operator looks.",
    "oldest_delivery_seconds": "Age of the oldest delivery that waits; 0 if none does.",
}


class Queues(Collector):
    """The levels of the database, read when Prometheus asks.

    Parameters
    ----------
    gauges : Gauges
    """

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """What :meth:`collect` gives, without asking the database."""
        return [GaugeMetricFamily(f"triage_{name}", "") for name in _names()]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Ask the database; where it does not answer, only that is told."""
        began = time.perf_counter()
        try:
            levels: Levels | None = self._gauges.read()
        except WorklistError:
            levels = None
        yield _family("database_up", "1 if the database answers.", levels is not None)
        if levels is None:
            return
        yield _family("gauges_seconds", "What reading these took.", time.perf_counter() - began)
        for name, (field, told) in _PLAIN.items():
            yield _family(name, told, getattr(levels, field))
        at = dt.datetime.now(dt.UTC)
        for name, told in _PER_DESTINATION.items():
            family = GaugeMetricFamily(f"triage_{name}", told, labels=["destination"])
            for backlog in levels.deliveries:
                waits = 0.0 if backlog.oldest is None else (at - backlog.oldest).total_seconds()
                values = {
                    "deliveries_pending": backlog.pending,
                    "deliveries_parked": backlog.parked,
                    "oldest_delivery_seconds": max(0.0, waits),
                }
                family.add_metric([backlog.destination], values[name])
            yield family


class Disks(Collector):
    """Room where folders are.

    Parameters
    ----------
    folders : mapping of str to Path
        By the word that Prometheus is told.
    """

    def __init__(self, folders: dict[str, Path]) -> None:
        self._folders = folders

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """What :meth:`collect` gives, without looking."""
        return [GaugeMetricFamily(f"triage_disk_{name}_bytes", "") for name in ("free", "size")]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Look; a folder that is not there is left out."""
        free = GaugeMetricFamily("triage_disk_free_bytes", "Room left.", labels=["place"])
        size = GaugeMetricFamily("triage_disk_size_bytes", "Room in all.", labels=["place"])
        for place, folder in self._folders.items():
            try:
                usage = shutil.disk_usage(folder)
            except OSError:
                continue
            free.add_metric([place], usage.free)
            size.add_metric([place], usage.total)
        yield from (free, size)


def _names() -> list[str]:
    return ["database_up", "gauges_seconds", *_PLAIN, *_PER_DESTINATION]


def _family(name: str, told: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"triage_{name}", told, value=float(value))
