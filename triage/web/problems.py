"""Errors as answers: ``application/problem+json`` for programs, a page for people.

The body is that of RFC 9457: ``type``, ``title``, ``status`` and ``detail``. Every error of
:mod:`triage.errors` that a request can meet has its status in :data:`STATUSES`; what has
none is a 500, of which nothing but its kind is told or logged.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from traceback import extract_tb
from typing import Any
from urllib.parse import quote

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triage.errors import (
    AccountError,
    BadCursor,
    BadImport,
    Changed,
    Forbidden,
    KeyReused,
    ModelError,
    NoDisagreement,
    NoRevision,
    NotReadable,
    NotSignedIn,
    PixelsError,
    ProviderFailed,
    SignInRefused,
    SpoolError,
    TooLarge,
    TooLate,
    TooManyAttempts,
    TooSlow,
    TriageError,
    UnknownItem,
    UnknownReading,
    WorklistError,
)

MEDIA_TYPE = "application/problem+json"

STATUSES: Mapping[type[TriageError], int] = {
    NotSignedIn: 401,
    SignInRefused: 401,
    Forbidden: 403,
    UnknownItem: 404,
    UnknownReading: 404,
    BadCursor: 422,
    BadImport: 422,
    KeyReused: 422,
    NotReadable: 409,
    NoDisagreement: 409,
    TooLate: 409,
    Changed: 412,
    NoRevision: 428,
    AccountError: 409,
    TooSlow: 408,
    TooLarge: 413,
    TooManyAttempts: 429,
    ProviderFailed: 502,
    PixelsError: 409,
    ModelError: 409,
    SpoolError: 503,
    WorklistError: 503,
}
"""The status of an error; of one that is not here, its base class's."""

API = "/api/"
"""What begins so is asked for by programs."""


class Problem(BaseModel):
    """RFC 9457. ``type`` names the kind of problem and stays the same from version to version."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] | None = None
    """Of a 422: what is wrong where, without the values."""


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route's OpenAPI entry says of the problems it may answer with."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
        }
        for status in statuses
    }


def problem(
    status: int,
    detail: str,
    kind: str = "",
    errors: Sequence[dict[str, Any]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem as JSON.

    Parameters
    ----------
    status : int
    detail : str
        What is wrong, where and what to do.
    kind : str
        The error's class name.
    errors : sequence of dict, optional
    headers : mapping of str to str, optional
    """
    title = HTTPStatus(status).phrase
    body = Problem(
        type=f"urn:cxr-triage:problem:{kind}" if kind else "about:blank",
        title=title,
        status=status,
        detail=detail,
        errors=None if errors is None else list(errors),
    )
    return JSONResponse(
        body.model_dump(exclude_none=True), status, dict(headers or {}), media_type=MEDIA_TYPE
    )


class Boundary:
    """The last one that an error of a request meets, whatever raised it.

    Parameters
    ----------
    app : ASGI application
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve; an error becomes an answer, or the end of one that has begun."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        # This is where what nobody foresaw is told without data and without a traceback.
        except Exception as error:
            if scope["type"] != "http":
                raise
            request = Request(scope)
            if begun:
                _log(request, error)
                return  # the server sees half an answer and cuts the connection
            foreseen = isinstance(error, TriageError)
            response = await (_triage_error if foreseen else _unforeseen)(request, error)
            await response(scope, receive, send)


def install(app: FastAPI) -> None:
    """Answer every error of a request with its problem."""
    app.add_exception_handler(TriageError, _triage_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _not_valid)


def answer(request: Request, error: TriageError) -> Response:
    """The answer to an error: the way to the sign-in page for a page without session."""
    if isinstance(error, NotSignedIn) and for_people(request):
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        follow = (
            f"?next={quote(asked, safe='')}" if request.method == "GET" and asked != "/" else ""
        )
        return RedirectResponse(f"/sign-in{follow}", 303)
    headers, complaints = {}, None
    if isinstance(error, TooManyAttempts):
        headers["Retry-After"] = str(error.retry_seconds)
    if isinstance(error, BadImport) and error.lines:
        complaints = [
            {"where": ["body", f"line {line}"], "what": what} for line, what in error.lines
        ]
    return _shown(request, status_of(error), str(error), type(error).__name__, complaints, headers)


def status_of(error: TriageError) -> int:
    """The status of an error, by its class or the nearest base class that has one."""
    for kind in type(error).__mro__:
        if kind in STATUSES:
            return STATUSES[kind]
    return 500


def for_people(request: Request) -> bool:
    """Whether a person's browser asks for a page."""
    return not request.url.path.startswith(API)


def _shown(
    request: Request,
    status: int,
    detail: str,
    kind: str = "",
    errors: Sequence[dict[str, Any]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    if for_people(request) and "text/html" in request.headers.get("accept", ""):
        content = {"status": status, "title": HTTPStatus(status).phrase, "detail": detail}
        page: Response = request.app.state.templates.TemplateResponse(
            request, "problem.html", content, status_code=status, headers=dict(headers or {})
        )
        return page
    return problem(status, detail, kind, errors, headers)


async def _triage_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TriageError)  # noqa: S101
    if status_of(error) >= 500:
        _log(request, error)
    return answer(request, error)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    return _shown(request, error.status_code, str(error.detail), headers=error.headers)


async def _not_valid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    complaints = [
        {"where": [str(part) for part in found["loc"]], "what": found["msg"]}
        for found in error.errors()
    ]
    first = complaints[0] if complaints else {"where": ["body"], "what": "not valid"}
    detail = f"{'.'.join(first['where'])}: {first['what']}"
    return _shown(request, 422, detail, "NotValid", complaints)


async def _unforeseen(request: Request, error: Exception) -> Response:
    _log(request, error)
    return _shown(
        request, 500, "something that was not foreseen went wrong; the service's log tells what"
    )


def _log(request: Request, error: Exception) -> None:
    """Where it happened and of what kind it is: its text may hold a patient's data."""
    frames = extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    told = str(error) if isinstance(error, TriageError) else type(error).__name__
    structlog.get_logger("web").error(
        "failed", action="request_failed", method=request.method, error=told, place=place
    )
