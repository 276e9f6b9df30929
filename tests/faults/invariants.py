"""The promises on the way of a radiograph, held against what a home really has.

One checker for every fault: consoles enter in a :class:`Ledger` what they sent and what they
were told, and :meth:`Ledger.check` compares that with the database, the spool and the
destinations, all read from outside, without the program's own queries.
"""

import hashlib
import itertools
import os
import stat
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Row, create_engine, text

from tests.faults.tally import Findings
from tests.integration.test_receiver import data_of

KINDS = {"dicom": ("FINDING", "HEAT_MAP"), "hl7": ("FINDING",), "webhook": ("FINDING",)}


@dataclass(frozen=True)
class Destination:
    """A destination and what it took: copies of each result by the result's identifier."""

    name: str
    kinds: tuple[str, ...]
    taken: Mapping[str, Sequence[bytes]]


class Ledger:
    """What consoles sent, and what they were told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.acknowledged: dict[str, str] = {}
        """SHA-256 of the data set by SOP Instance UID, of what got Success."""
        self.offered: dict[str, set[str]] = defaultdict(set)
        """Of what was sent whole, whatever the answer."""
        self.cut: set[str] = set()
        """Sent in part, never whole."""

    def offers(self, uid: str, data: bytes) -> None:
        """Enter before the last byte goes out."""
        with self._lock:
            self.offered[uid].add(hashlib.sha256(data).hexdigest())

    def success(self, uid: str, data: bytes) -> None:
        """Enter after the answer Success came."""
        with self._lock:
            self.acknowledged[uid] = hashlib.sha256(data).hexdigest()

    def check(
        self,
        database_url: str,
        spool: Path,
        *,
        settled: bool = True,
        destinations: Sequence[Destination] = (),
        running: bool = True,
    ) -> Findings:
        """Hold a home against the ledger.

        Parameters
        ----------
        database_url : str
        spool : Path
        settled : bool
            Whether scoring and delivering have come to their end.
        destinations : sequence of Destination
        running : bool
            Whether a receiver has started since the fault, and swept.
        """
        findings = Findings(len(self.acknowledged))
        items, scores, deliveries, events = _rows(database_url)
        by_uid = defaultdict(list)
        for item in items:
            by_uid[item.sop_instance_uid].append(item)
        self._kept(findings, by_uid, spool)
        self._no_trace(findings, by_uid, spool, running=running)
        if settled:
            _settled(findings, items, scores, events)
            _delivered(findings, items, deliveries, destinations)
        return findings

    def _kept(self, findings: Findings, by_uid: Mapping[str, Sequence[Row]], spool: Path) -> None:
        """Each acknowledged image has one row, and is on the disk byte for byte."""
        for uid, digest in self.acknowledged.items():
            rows = by_uid.get(uid, ())
            if not rows:
                findings.lost.append(f"{uid} got Success and has no row")
                continue
            if len(rows) > 1:
                findings.duplicated.append(f"{uid} has {len(rows)} rows")
            if rows[0].digest != digest:
                findings.lost.append(f"{uid} has the row of another data set")
            elif (on_disk := _content(spool, digest)) != digest:
                findings.lost.append(f"{uid} got Success, its file is {on_disk}")

    def _no_trace(
        self,
        findings: Findings,
        by_uid: Mapping[str, Sequence[Row]],
        spool: Path,
        *,
        running: bool,
    ) -> None:
        """What a reader sees came whole; a lost answer may leave it there, but never half."""
        for uid, rows in by_uid.items():
            for row in rows:
                if row.digest not in self.offered.get(uid, ()):
                    findings.traces.append(f"{uid} is listed and was never sent whole")
                elif _content(spool, row.digest) != row.digest:
                    findings.traces.append(f"{uid} is listed without its whole file")
        whole = {digest for digests in self.offered.values() for digest in digests}
        for place in ("instances", "quarantine"):
            for file in (spool / place).rglob("*"):
                if file.is_file() and (file.stem not in whole or _digest(file) != file.stem):
                    findings.traces.append(f"{place} has {file.name}, which nobody sent so")
        if running and (spool / "incoming").is_dir():
            for file in (spool / "incoming").iterdir():
                findings.traces.append(f"incoming still has {file.name}")


def _rows(url: str) -> tuple[Sequence[Row], ...]:
    driver = url.replace("postgresql://", "postgresql+psycopg://")
    engine = create_engine(driver)
    try:
        with engine.connect() as connection:
            return tuple(
                connection.execute(text(f"SELECT * FROM {table}")).all()
                for table in ("items", "scores", "deliveries", "events")
            )
    finally:
        engine.dispose()


def _content(spool: Path, digest: str) -> str:
    file = spool / "instances" / digest[:2] / f"{digest}.dcm"
    return _digest(file) if file.exists() else "missing"


def _digest(file: Path) -> str:
    content = file.read_bytes()
    if len(content) < 144 or content[128:132] != b"DICM":
        return f"damaged ({len(content)} bytes)"
    return hashlib.sha256(data_of(content)).hexdigest()


def _settled(
    findings: Findings, items: Sequence[Row], scores: Sequence[Row], events: Sequence[Row]
) -> None:
    """Each image ends scored or with a reason, once."""
    per_item = Counter(score.item_id for score in scores)
    ends = Counter(
        event.item_id for event in events if event.action in {"SCORED", "NOT_SCORED", "FAILED"}
    )
    for item in items:
        uid = item.sop_instance_uid
        scored = item.state in {"SCORED", "CONFIRMED", "REJECTED"}
        if scored and (item.score is None or item.model_version is None or item.reason):
            findings.unsettled.append(f"{uid} is {item.state} without a score")
        elif not scored and not (item.state in {"NOT_SCORED", "FAILED"} and item.reason):
            findings.unsettled.append(f"{uid} is {item.state}, reason {item.reason}")
        if per_item[item.id] != int(scored) or ends[item.id] > 1:
            findings.duplicated.append(
                f"{uid} is {item.state} with {per_item[item.id]} scores, settled "
                f"{ends[item.id]} times"
            )


def _delivered(
    findings: Findings,
    items: Sequence[Row],
    deliveries: Sequence[Row],
    destinations: Sequence[Destination],
) -> None:
    """Each score's results are at each destination, under one identifier, with one content."""
    rows = defaultdict(list)
    for delivery in deliveries:
        if delivery.reading_id is None:
            key = (delivery.item_id, delivery.destination, delivery.kind)
            rows[key].append(delivery)
    scored = [item for item in items if item.score is not None]
    for there in destinations:
        known: set[str] = set()
        for item, kind in itertools.product(scored, there.kinds):
            of = rows.get((item.id, there.name, kind), [])
            name = f"{kind} of {item.sop_instance_uid} to {there.name}"
            if len(of) != 1:
                findings.undelivered.append(f"{name} has {len(of)} deliveries")
                continue
            known.add(of[0].result_uid)
            if of[0].state != "DELIVERED" or of[0].result_uid not in there.taken:
                findings.undelivered.append(f"{name} is {of[0].state} ({of[0].error})")
        strangers = set(there.taken) - known
        two = [uid for uid, copies in there.taken.items() if len(set(copies)) > 1]
        findings.duplicated += [
            f"{there.name} has {uid}, of which no row knows" for uid in strangers
        ]
        findings.duplicated += [f"{there.name} has two results as {uid}" for uid in two]


def open_to_others(home: Path) -> list[str]:
    """Every path of a home, itself too, that anybody but its owner may read, write or enter."""
    told = []
    for path in [home, *home.rglob("*")]:
        status = path.lstat()
        if not path.is_symlink() and (status.st_mode & 0o077 or status.st_uid != os.geteuid()):
            told.append(f"{stat.filemode(status.st_mode)} {path.relative_to(home)}")
    return told
