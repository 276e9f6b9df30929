"""Whether the page's process lives and can work, for who has no session: ok, or why not."""

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
def healthz(request: Request) -> PlainTextResponse:
    """Whether the process need not be started again."""
    return _answer(request.app.state.site.health.stalled())


@router.get("/readyz")
def readyz(request: Request) -> PlainTextResponse:
    """Whether it has all that it needs."""
    return _answer("; ".join(request.app.state.site.health.missing()))


def _answer(why: str) -> PlainTextResponse:
    headers = {"Cache-Control": "no-store"}
    return PlainTextResponse(f"{why or 'ok'}\n", 503 if why else 200, headers)
