"""What holds for every request and answer: security headers, and how long a body may be."""

import asyncio
from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triage.errors import TooLarge, TooSlow, TriageError
from triage.web import problems

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""No inline script, no inline style, nothing from elsewhere (CSP Level 3)."""

COMMON: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: under it browsers call the origin of our own forms "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

BODY_SECONDS = 20.0
"""So long the next part of a body may take."""

TRANSPORT = "max-age=31536000"
"""Strict-Transport-Security (RFC 6797), where the page is served by TLS."""


class Headers:
    """Adds the headers; an answer that says nothing of caching is kept by nobody.

    Parameters
    ----------
    app : ASGI application
    secure : bool
        Whether browsers reach the page by TLS.
    """

    def __init__(self, app: ASGIApp, *, secure: bool) -> None:
        self._app = app
        self._headers = dict(COMMON)
        if secure:
            self._headers["Strict-Transport-Security"] = TRANSPORT

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, with the headers on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers)


class BodyLimit:
    """Refuses a body that is longer than its path allows, or that does not come.

    Parameters
    ----------
    app : ASGI application
    most : int
        Bytes.
    longer : mapping of str to int
        Of some paths.
    """

    def __init__(self, app: ASGIApp, most: int, longer: Mapping[str, int]) -> None:
        self._app = app
        self._most = most
        self._longer = longer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, unless too much comes, or too slowly."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        body = _Body(receive, self._longer.get(request.url.path, self._most))
        begun = False

        async def unless_refused(message: Message) -> None:
            nonlocal begun
            if body.refusal is None or begun:
                begun = True
                await send(message)

        if body.fits(request.headers.get("content-length", "0")):
            try:
                await self._app(scope, body.receive, unless_refused)
            except TriageError as error:
                if error is not body.refusal:
                    raise
        # Whatever was made of half a body, the answer is why it is half.
        if body.refusal is not None and not begun:
            await problems.answer(request, body.refusal)(scope, receive, send)


class _Body:
    """A request's body as it comes in."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = most
        self._come = 0
        self._whole = False
        self.refusal: TriageError | None = None

    def fits(self, announced: str) -> bool:
        """Whether a body of an announced length may come."""
        if announced.isdecimal() and int(announced) <= self._most:
            return True
        self.refusal = self._too_large()
        return False

    async def receive(self) -> Message:
        """The next part, counted and waited for a while only."""
        if self._whole:  # what comes now is the end of the connection, whenever that is
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), BODY_SECONDS)
        except TimeoutError:
            self.refusal = TooSlow("the request did not come whole: try again")
            raise self.refusal from None
        self._come += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._come > self._most:
            self.refusal = self._too_large()
            raise self.refusal
        return message

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the request is longer than {self._most} bytes: send less at once")
