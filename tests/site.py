"""A site with readings: exams in a worklist whose objects lie in a spool."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.builders import encoded, picture, radiograph
from tests.exams import arrival
from training.snapshots import Pictures
from triage.identity import Instance
from triage.scoring import Score, Verdict
from triage.spool import Spool, digest_of
from triage.worklist import Arrival, Worklist
from triage.worklist.readings import Said

VERSION = "v1"


@cache
def _file(seed: int, uid: str) -> tuple[bytes, bytes]:
    """A small radiograph: its file meta information, and its data set."""
    dataset = radiograph(picture(seed), SOPInstanceUID=uid)
    content = encoded(dataset)
    start = 144 + int.from_bytes(content[140:144], "little")  # PS3.10 7.1
    return content[:start], content[start:]


@dataclass
class Site:
    """A worklist and a spool that belong together."""

    worklist: Worklist
    folder: Path
    spool: Spool = field(init=False)
    pictures: Pictures = field(init=False)

    def __post_init__(self) -> None:
        self.spool = Spool(self.folder / "spool")
        self.pictures = Pictures(self.spool, self.folder / "arrays")

    def exam(
        self,
        number: int,
        *,
        patient: str | None = None,
        score: float = 0.9,
        seed: int | None = None,
        picture_hash: str | None = None,
        **header: str,
    ) -> str:
        """An exam that came and was scored; its SOP Instance UID."""
        uid = f"1.2.{number}"
        meta, dataset = _file(number if seed is None else seed, uid)
        digest = digest_of(dataset)
        self.spool.put(digest, [meta, dataset])
        came = arrival(uid, patient_id=f"P{number}" if patient is None else patient, **header)
        assert self.worklist.receive(
            Arrival(
                Instance(**{name: getattr(came.instance, name) for name in Instance.__slots__}),
                came.transfer_syntax_uid,
                came.calling_ae_title,
                came.calling_address,
                digest,
                len(dataset),
            )
        )
        claim = self.worklist.claim("worker")
        assert claim is not None
        assert self.worklist.scored(claim, Score(score, 0.5, VERSION), (), picture_hash)
        return uid

    def read(
        self, uid: str, verdict: Verdict = "confirmed", reader: str = "one", **said: bool
    ) -> int:
        """A reading; its number."""
        told = Said(verdict, reader, adjudicates=said.get("adjudicates", False))
        return self.worklist.readings.add(uid, told)[0].id
