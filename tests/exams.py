"""Exams in a worklist, entered and scored by its own services."""

from collections.abc import Sequence
from typing import Any

from triage.identity import Instance
from triage.scoring import Score
from triage.worklist import Arrival, Worklist
from triage.worklist.items import WorklistItem

FLAGGED, UNFLAGGED = Score(0.9, 0.5, "v1"), Score(0.1, 0.5, "v1")


def arrival(uid: str, console: str = "CR1", **header: str) -> Arrival:
    """An instance that came, with what its header says."""
    said: dict[str, Any] = dict.fromkeys(Instance.__slots__, "")
    said |= {
        "sop_instance_uid": uid,
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1",
        "series_instance_uid": f"{uid}.1",
        "study_instance_uid": f"{uid}.2",
        "modality": "DX",
        "view_position": "PA",
        **header,
    }
    return Arrival(Instance(**said), "1.2.840.10008.1.2.1", console, "127.0.0.1", "ab" * 32, 1)


def enter(
    worklist: Worklist,
    uid: str,
    score: Score | None = UNFLAGGED,
    notes: Sequence[str] = (),
    **header: str,
) -> WorklistItem:
    """An exam that came and was scored, unless there is no score; as it then stands.

    Nothing else may wait to be scored.
    """
    assert worklist.receive(arrival(uid, **header))
    if score is not None:
        claim = worklist.claim("worker")
        assert claim is not None
        assert claim.sop_instance_uid == uid
        assert worklist.scored(claim, score, tuple(notes))
    return worklist.item(uid)
