"""The API, version 1. Its document is ``/api/v1/openapi.json``.

What anybody is shown of an item goes through :func:`seen_by`: the score of an exam in the
random sample stays hidden from whoever has not read it, on every route.
"""

import datetime as dt
import shutil
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from io import TextIOWrapper
from tempfile import SpooledTemporaryFile
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from triage.drift import REFERENCE
from triage.errors import BadImport, NoRevision, UnknownItem
from triage.identity import valid_uid
from triage.registry import CHAMPION, SHADOW
from triage.web import problems
from triage.web.signin import Viewer, require
from triage.worklist import State, Worklist, WorklistItem
from triage.worklist.accounts import Role, User
from triage.worklist.audit import Action
from triage.worklist.deliveries import DeliveryState
from triage.worklist.drifts import Measure
from triage.worklist.queries import MOST, Filter, Moved
from triage.worklist.readings import EXPORTED, LONGEST_COMMENT, UNDO, Once, ReadingRecord, Said

router = APIRouter(prefix="/api/v1", tags=["worklist"])

Reader = Annotated[User, Depends(require(Role.READER))]
Operator = Annotated[User, Depends(require(Role.OPERATOR))]

Uid = Annotated[str, Path(max_length=64, pattern=r"^[0-9.]+$", description="SOP Instance UID")]


MOST_PARKED = 50
"""Parked deliveries that the operator's view lists; the command lists all."""

UNSETTLED = (State.RECEIVED, State.FAILED)
"""States that the operator's view counts; the others grow with the years."""


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Session(_Answer):
    """Who has signed in."""

    name: str
    display_name: str
    roles: list[str]
    csrf: str
    """What the header X-CSRF-Token holds in requests that change something."""


class ItemOut(_Answer):
    """A worklist item. Times are ISO 8601 in UTC; `score` and `threshold` are 0 to 1."""

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    sop_class_uid: str
    accession_number: str
    patient_id: str
    patient_name: str
    modality: str
    body_part: str
    view_position: str
    patient_age: str
    patient_sex: str
    calling_ae_title: str
    received_at: dt.datetime
    scored_at: dt.datetime | None
    state: State
    reason: str | None
    explanation: str
    notes: list[str]
    score: float | None
    threshold: float | None
    flagged: bool | None
    urgency: Literal["ROUTINE", "HIGH", "STAT"]
    priority: int
    """Minutes: waiting time and head start; 0 once read."""
    model_version: str | None
    unread: bool
    blind: bool
    """Its score is hidden, because the exam is in the random sample and you have not read it."""
    disagreement: bool
    readings_count: int
    waiting_seconds: int
    calibrated: bool
    """Whether the model states that its probabilities are calibrated."""


class ReadingOut(_Answer):
    """A reading."""

    id: int
    reader: str
    verdict: str
    read_at: dt.datetime
    sampling: str
    shown_score: float
    shown_threshold: float
    shown_model_version: str
    blinded: bool
    comment: str
    location: tuple[float, float] | None
    adjudicates: bool
    source: str
    withdrawn_at: dt.datetime | None


class EventOut(_Answer):
    """A move of an item."""

    at: dt.datetime
    action: str
    actor: str
    detail: dict[str, Any]


class ExamOut(_Answer):
    """An item with all that happened to it. The header ETag names its revision."""

    item: ItemOut
    readings: list[ReadingOut]
    events: list[EventOut]


class PageOut(_Answer):
    """A page of the worklist."""

    items: list[ItemOut]
    next: str | None
    """The cursor of the next page."""


class ItemsOut(_Answer):
    """Items."""

    items: list[ItemOut]


class Location(BaseModel):
    """Of a finding in the stored picture: 0 left to 1 right, 0 top to 1 bottom."""

    model_config = ConfigDict(extra="forbid")

    x: float = Field(ge=0, le=1, allow_inf_nan=False)
    y: float = Field(ge=0, le=1, allow_inf_nan=False)


class ReadingIn(BaseModel):
    """What a reader says of an item."""

    model_config = ConfigDict(extra="forbid")

    verdict: Literal["confirmed", "rejected"]
    comment: str = Field(default="", max_length=LONGEST_COMMENT, pattern=r"^[^\x00]*$")
    location: Location | None = None
    adjudicates: bool = False


class ReadOut(_Answer):
    """A reading that was recorded, and the item as it then stands."""

    reading: ReadingOut
    item: ItemOut
    undo_seconds: int
    """So long it may be withdrawn."""


class LineOut(_Answer):
    """What becomes of a line of an import."""

    line: int
    sop_instance_uid: str
    problem: str


class ImportOut(_Answer):
    """An import, or what would become of it."""

    taken: int
    lines: list[LineOut]


class StatisticsOut(_Answer):
    """The dashboard's figures; days are of UTC."""

    days: list[dict[str, Any]]
    waits: list[dict[str, Any]]
    agreement: list[dict[str, Any]]
    consoles: list[dict[str, Any]]
    scores: list[int]
    reasons: dict[str, int]
    known_consoles: list[str]


class DriftOut(_Answer):
    """Alarms that nobody has acknowledged, and how near each measure is to one."""

    alarms: list[dict[str, Any]]
    measures: list[dict[str, Any]]


class OperationsOut(_Answer):
    """The operator's view."""

    parts: list[dict[str, Any]]
    """The service's processes, on all nodes; `runs` is false for one that has fallen silent."""
    missing: list[str]
    """Parts that no node runs, though exams need them."""
    model_version: str | None
    counts: dict[str, int]
    """Of what is not settled: `RECEIVED`, which wait for a score, and `FAILED`."""
    oldest_waiting: dt.datetime | None
    deliveries: list[dict[str, Any]]
    parked: list[dict[str, Any]]
    """Deliveries that were given up, the newest first; at most 50."""
    commitments: dict[str, int]
    shadow: dict[str, Any] | None
    """What the challenger in shadow says, if there is one."""
    drift: list[dict[str, Any]]
    disk_free_bytes: int
    disk_total_bytes: int


_SIGNED_IN = problems.responses(401, 403, 503)
_OF_ITEM = problems.responses(401, 403, 404, 422, 503)


@router.get("/session", responses=_SIGNED_IN)
def session(request: Request, user: Viewer) -> Session:
    """Who has signed in."""
    return Session(
        name=user.name,
        display_name=user.display_name,
        roles=sorted(user.roles),
        csrf=request.state.csrf,
    )


class Asked(BaseModel):
    """The list's query."""

    model_config = ConfigDict(extra="forbid")

    state: State | None = None
    unread: bool | None = None
    flagged: bool | None = None
    disagreement: bool | None = None
    modality: str = Field(default="", max_length=16)
    view: str = Field(default="", max_length=16)
    console: str = Field(default="", max_length=16)
    finding: str = Field(default="", max_length=64, pattern=r"^[A-Z_]*$")
    q: str = Field(default="", max_length=64, pattern=r"^[^\x00]*$")
    received_from: dt.datetime | None = None
    received_to: dt.datetime | None = None
    limit: int = Field(default=100, ge=1, le=MOST)
    cursor: str | None = Field(default=None, max_length=200)

    def filter(self) -> Filter:
        """What the worklist is asked."""
        return Filter(
            self.state,
            self.unread,
            self.flagged,
            self.disagreement,
            self.modality,
            self.view,
            self.console,
            self.finding,
            self.q,
            _utc(self.received_from),
            _utc(self.received_to),
        )


@router.get("/items", responses=problems.responses(401, 403, 422, 503))
def items(request: Request, user: Viewer, asked: Annotated[Asked, Query()]) -> PageOut:
    """Items in reading order, a page at a time."""
    page = _worklist(request).queries.page(asked.filter(), asked.limit, asked.cursor, user.name)
    if asked.cursor is None:
        looked = asked.model_dump(mode="json", exclude_defaults=True, exclude={"limit", "q"})
        _audit(request, user, Action.SAW_LIST, detail=looked | {"searched": bool(asked.q)})
    return PageOut(items=_shown(request, user, page.items), next=page.next)


@router.get("/items/{uid}", responses=_OF_ITEM)
def exam(request: Request, response: Response, user: Viewer, uid: Uid) -> ExamOut:
    """An item with its readings and events."""
    worklist = _worklist(request)
    item = worklist.item(_uid(uid))
    readings, events = worklist.readings.of(uid), worklist.journal(uid)
    _audit(request, user, Action.SAW_EXAM, uid)
    response.headers["ETag"] = etag(item)
    (visible,) = _shown(request, user, [item])
    if visible.blind:  # others' readings and the journal tell the score, too
        readings = []
        events = [event for event in events if event.action == State.RECEIVED]
    return ExamOut(
        item=visible,
        readings=[_reading(each) for each in readings],
        events=[
            EventOut(at=each.at, action=each.action, actor=each.actor, detail=each.detail)
            for each in events
        ],
    )


@router.get("/items/{uid}/priors", responses=_OF_ITEM)
def priors(request: Request, user: Viewer, uid: Uid) -> ItemsOut:
    """Other items of the same patient, the newest first."""
    found = _worklist(request).queries.priors(_uid(uid))
    _audit(request, user, Action.SAW_LIST, uid, {"priors": len(found)})
    return ItemsOut(items=_shown(request, user, found))


@router.post(
    "/items/{uid}/readings",
    status_code=201,
    responses=problems.responses(400, 401, 403, 404, 409, 412, 413, 422, 428, 503),
)
def read(
    request: Request,
    response: Response,
    user: Reader,
    uid: Uid,
    said: ReadingIn,
    if_match: Annotated[str | None, Header(max_length=100)] = None,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=128)] = None,
) -> ReadOut:
    """Confirm or reject. `If-Match` is the ETag of the item that the reader was shown."""
    worklist = _worklist(request)
    item = worklist.item(_uid(uid))
    if if_match is None:
        raise NoRevision("give the item's ETag in the header If-Match")
    once = (
        None
        if idempotency_key is None
        else Once.of(idempotency_key, uid, said.model_dump(mode="json"))
    )
    telemetry = request.app.state.site.telemetry
    with telemetry.step("read", uid, verdict=said.verdict):
        reading, after = worklist.readings.add(
            uid,
            Said(
                said.verdict,
                user.name,
                said.comment,
                None if said.location is None else (said.location.x, said.location.y),
                said.adjudicates,
                "page",
            ),
            # What does not match any revision of ours never will.
            revision=item.revision if if_match == "*" else _revision(uid, if_match),
            once=once,
            undo=UNDO,
        )
    telemetry.readings.labels(said.verdict).inc()
    response.headers["ETag"] = etag(after)
    (visible,) = _shown(request, user, [after])
    return ReadOut(reading=_reading(reading), item=visible, undo_seconds=UNDO.seconds)


@router.delete(
    "/items/{uid}/readings/{reading_id}",
    responses=problems.responses(401, 403, 404, 409, 422, 503),
)
def withdraw(
    request: Request,
    response: Response,
    user: Reader,
    uid: Uid,
    reading_id: Annotated[int, Path(ge=1, lt=2**63)],
) -> ItemOut:
    """Take one's own reading back, within a minute."""
    after = _worklist(request).readings.withdraw(_uid(uid), reading_id, user.name)
    response.headers["ETag"] = etag(after)
    (visible,) = _shown(request, user, [after])
    return visible


@router.get("/adjudication", responses=problems.responses(401, 403, 422, 503))
def adjudication(
    request: Request,
    user: Viewer,
    limit: Annotated[int, Query(ge=1, le=MOST)] = 100,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> PageOut:
    """Items on which two readers differ, and nobody has adjudicated."""
    page = _worklist(request).queries.page(Filter(disagreement=True), limit, cursor, user.name)
    _audit(request, user, Action.SAW_LIST, detail={"adjudication": True})
    return PageOut(items=_shown(request, user, page.items), next=page.next)


@router.get("/models/{version}", responses=_OF_ITEM)
def model(
    request: Request,
    _user: Viewer,
    version: Annotated[str, Path(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")],
) -> dict[str, Any]:
    """What a model version states about itself: the card."""
    known = {each.version: each for each in request.app.state.site.models.versions()}
    if version not in known:
        raise UnknownItem(f"there is no model version {version}")
    return dict(known[version].description)


@router.get("/statistics", responses=problems.responses(401, 403, 422, 503))
def statistics(
    request: Request,
    user: Viewer,
    days: Annotated[int, Query(ge=1, le=366)] = 30,
    console: Annotated[str, Query(max_length=16)] = "",
) -> StatisticsOut:
    """Volume, waiting, agreement, consoles and drift of the last days."""
    worklist = _worklist(request)
    figures = worklist.statistics.figures(days, console)
    _audit(request, user, Action.SAW_STATISTICS, detail={"days": days})
    return StatisticsOut(
        days=[_plain(each) for each in figures.days],
        waits=[_plain(each) for each in figures.waits],
        agreement=[_plain(each) for each in figures.agreement],
        consoles=[_plain(each) for each in figures.consoles],
        scores=list(figures.scores),
        reasons=figures.reasons,
        known_consoles=worklist.queries.consoles(),
    )


def _shadow(aliases: Mapping[str, str], worklist: Worklist) -> dict[str, Any] | None:
    version, champion = aliases.get(SHADOW), aliases.get(CHAMPION)
    if version is None or champion is None:
        return None
    return worklist.shadows.compared(version, champion).as_json()


@router.get("/drift", responses=problems.responses(401, 403, 422, 503))
def drift(
    request: Request, user: Viewer, console: Annotated[str, Query(max_length=16)] = ""
) -> DriftOut:
    """Whether what comes now is unlike what came before; a level of 1 is an alarm."""
    site, worklist = request.app.state.site, _worklist(request)
    champion, since = site.models.aliases().get(CHAMPION), site.models.since(CHAMPION)
    _audit(request, user, Action.SAW_STATISTICS, detail={"drift": True})
    measures = []
    if champion is not None and since is not None:
        for measure in Measure:
            found = worklist.drifts.series(
                champion, since, measure, console, site.config.drift_patience
            )
            measures.append(
                {
                    "measure": str(measure),
                    "count": len(found.values),
                    "learning": max(0, REFERENCE - len(found.values)),
                    "days": [{"day": day, "level": x} for day, x in found.by_day().items()],
                }
            )
    return DriftOut(
        alarms=[alarm.as_json() for alarm in worklist.drifts.alarms()], measures=measures
    )


@router.get("/operations", responses=_SIGNED_IN)
def operations(request: Request, _user: Operator) -> OperationsOut:
    """Parts, queues, parked deliveries, the model and the disk."""
    site, worklist = request.app.state.site, _worklist(request)
    disk = shutil.disk_usage(site.config.home)
    parts = worklist.parts.records()
    needed = ["receive", "score", *(["deliver"] if site.config.destinations else [])]
    return OperationsOut(
        parts=[_plain(each) for each in parts],
        missing=[role for role in needed if not any(p.runs and p.role == role for p in parts)],
        model_version=site.models.aliases().get(CHAMPION),
        counts={str(state): count for state, count in worklist.counts(UNSETTLED).items()},
        oldest_waiting=worklist.oldest_received(),
        deliveries=[_plain(each) for each in worklist.deliveries.backlogs()],
        parked=[
            _plain(each) for each in worklist.deliveries.records(DeliveryState.PARKED, MOST_PARKED)
        ],
        commitments={str(s): n for s, n in worklist.commitments.counts().items()},
        shadow=_shadow(site.models.aliases(), worklist),
        drift=[alarm.as_json() for alarm in worklist.drifts.alarms()],
        disk_free_bytes=disk.free,
        disk_total_bytes=disk.total,
    )


@router.get(
    "/live",
    response_class=StreamingResponse,
    responses={
        **problems.responses(401, 403, 422, 503),
        200: {"content": {"text/event-stream": {}}, "description": "Events without end"},
    },
)
async def live(
    request: Request,
    user: Viewer,
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**63)] = None,
) -> StreamingResponse:
    """Rows as they move: events `item`, `reset` and `heartbeat`."""

    def row(moved: Moved) -> dict[str, Any]:
        (visible,) = _shown(request, user, [moved.item])
        return visible.model_dump(mode="json")

    await to_thread(_audit, request, user, Action.SAW_LIST, detail={"live": True})
    stream: AsyncIterator[bytes] = request.app.state.live.stream(last_event_id, row)
    return StreamingResponse(stream, media_type="text/event-stream")


@router.post(
    "/readings/import",
    responses=problems.responses(401, 403, 413, 422, 503),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"text/csv": {"schema": {"type": "string"}}},
        }
    },
)
async def import_readings(
    request: Request, user: Operator, dry_run: Annotated[bool, Query()] = True
) -> ImportOut:
    """Take readings from CSV: all lines or none. A dry run unless told otherwise."""
    from fastapi.concurrency import run_in_threadpool

    with SpooledTemporaryFile(max_size=1_000_000) as kept:
        async for chunk in request.stream():
            kept.write(chunk)
        kept.seek(0)
        if b"\0" in (first := kept.read(4_096)) or not first:
            raise BadImport("the body is no CSV in UTF-8")
        kept.seek(0)
        lines = TextIOWrapper(kept, encoding="utf-8-sig", newline="")
        reports = await run_in_threadpool(
            _worklist(request).readings.take, lines, user.name, dry_run=dry_run
        )
        lines.detach()
    taken = 0 if dry_run else len(reports)
    return ImportOut(taken=taken, lines=[LineOut(**_plain(each)) for each in reports])


@router.get(
    "/readings/export",
    response_class=StreamingResponse,
    responses={
        **problems.responses(401, 403, 503),
        200: {"content": {"text/csv": {}}, "description": "All readings, oldest first"},
    },
)
def export_readings(request: Request, user: Operator) -> StreamingResponse:
    """All readings as CSV."""
    rows = _worklist(request).readings.export(user.name)
    return StreamingResponse(
        _csv(rows),
        media_type="text/csv",
        headers={"Content-Disposition": 'attachment; filename="readings.csv"'},
    )


def etag(item: WorklistItem) -> str:
    """The header that names an item's revision (RFC 9110 8.8.3)."""
    return f'"{item.sop_instance_uid}-{item.revision}"'


def seen_by(worklist: Worklist, user: User, items: Sequence[WorklistItem]) -> list[WorklistItem]:
    """Items as somebody may see them: blind ones without score until they have read them.

    In what is given, ``blind`` says that the score is hidden from this user.
    """
    from dataclasses import replace

    drawn = [item.sop_instance_uid for item in items if item.blind]
    read = worklist.readings.read_by(user.name, drawn)
    return [
        item.hidden()
        if item.blind and item.sop_instance_uid not in read
        else replace(item, blind=False)
        for item in items
    ]


def _shown(request: Request, user: User, found: Sequence[WorklistItem]) -> list[ItemOut]:
    models = request.app.state.calibrated
    return [
        ItemOut.model_validate(item.as_json() | {"calibrated": models(item.model_version)})
        for item in seen_by(_worklist(request), user, found)
    ]


def _reading(reading: ReadingRecord) -> ReadingOut:
    return ReadingOut(**_plain(reading))


def _revision(uid: str, tag: str) -> int:
    """The revision that an ETag names; -1 if it is none of this item's."""
    name, _, number = tag.removeprefix("W/").strip('"').rpartition("-")
    return int(number) if name == uid and number.isdecimal() and len(number) < 10 else -1


def _uid(uid: str) -> str:
    if not valid_uid(uid):
        raise UnknownItem("that is no SOP Instance UID (PS3.5 9.1)")
    return uid


def _utc(moment: dt.datetime | None) -> dt.datetime | None:
    """A time without a zone is meant in UTC."""
    if moment is None or moment.tzinfo is not None:
        return moment
    return moment.replace(tzinfo=dt.UTC)


def _plain(record: Any) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in type(record).__slots__}
    return {
        name: value.isoformat() if isinstance(value, dt.datetime) else value
        for name, value in values.items()
    }


def _csv(rows: Iterator[dict[str, str]]) -> Iterator[str]:
    import csv
    from io import StringIO

    line = StringIO()
    table = csv.DictWriter(line, EXPORTED, lineterminator="\r\n")
    table.writeheader()
    for row in rows:
        table.writerow(row)
        if line.tell() > 32_768:
            yield line.getvalue()
            line.seek(0)
            line.truncate()
    yield line.getvalue()


def _audit(
    request: Request,
    user: User,
    action: Action,
    subject: str = "",
    detail: dict[str, Any] | None = None,
) -> None:
    _worklist(request).audit.record(user.name, action, subject, detail)


def _worklist(request: Request) -> Worklist:
    worklist: Worklist = request.app.state.site.worklist
    return worklist
