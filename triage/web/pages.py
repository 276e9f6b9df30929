"""The pages: HTML that our own scripts fill from the API, and the pictures that they show."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import Response

from triage.errors import NotReadable
from triage.web.api import seen_by
from triage.web.pictures import DESCRIPTION, LEGEND, Pictures
from triage.web.signin import Viewer, require
from triage.worklist.accounts import Role, User
from triage.worklist.audit import Action

router = APIRouter(include_in_schema=False)

KEEP = "private, max-age=31536000, immutable"
"""What the browser of who is signed in may keep: one UID is one picture for ever."""

Uid = Annotated[str, Path(pattern=r"^[0-9.]{1,64}$")]
Operator = Annotated[User, Depends(require(Role.OPERATOR))]


@router.get("/")
def worklist(request: Request, user: Viewer) -> Response:
    """The list in reading order."""
    return _page(request, user, "list.html")


@router.get("/exams/{uid}")
def exam(request: Request, user: Viewer, uid: Uid) -> Response:
    """One exam: the radiograph, its score, the verdict."""
    site = request.app.state.site
    site.worklist.item(uid)
    return _page(request, user, "exam.html", uid=uid, viewer_url=site.config.viewer_url)


@router.get("/exams/{uid}/picture")
def picture(request: Request, user: Viewer, uid: Uid) -> Response:
    """The radiograph's greys; :mod:`triage.web.pictures` says how."""
    worklist = request.app.state.site.worklist
    item = worklist.item(uid)
    worklist.audit.record(user.name, Action.SAW_PICTURE, uid)
    tag = f'"{item.digest}"'
    headers = {"Cache-Control": KEEP, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    sent = _pictures(request).picture(item.digest)
    return Response(
        sent.content, headers={**headers, DESCRIPTION: sent.description},
        media_type="application/octet-stream",
    )  # fmt: skip


@router.get("/exams/{uid}/heat-map")
def heat_map(request: Request, user: Viewer, uid: Uid) -> Response:
    """The heat map as a PNG to lay over the radiograph."""
    worklist = request.app.state.site.worklist
    (item,) = seen_by(worklist, user, [worklist.item(uid)])
    if item.model_version is None:
        raise NotReadable(
            f"{uid} has no score to explain, or none that you may see before you read it"
        )
    heat = _pictures(request).heat_map(item.digest, item.model_version)
    worklist.audit.record(user.name, Action.SAW_PICTURE, uid, {"heat_map": item.model_version})
    return Response(heat.png, headers={LEGEND: heat.legend}, media_type="image/png")


@router.get("/adjudication")
def adjudication(request: Request, user: Viewer) -> Response:
    """The exams that two readers read differently."""
    return _page(request, user, "adjudication.html")


@router.get("/dashboard")
def dashboard(request: Request, user: Viewer) -> Response:
    """How many, how urgent, how long, how often right."""
    return _page(request, user, "dashboard.html")


@router.get("/operations")
def operations(request: Request, user: Operator) -> Response:
    """Parts, queues, deliveries and disk."""
    return _page(request, user, "operations.html")


def _page(request: Request, user: User, name: str, **content: object) -> Response:
    page: Response = request.app.state.templates.TemplateResponse(
        request, name, {"user": user, "csrf": request.state.csrf, **content}
    )
    return page


def _pictures(request: Request) -> Pictures:
    pictures: Pictures = request.app.state.pictures
    return pictures
