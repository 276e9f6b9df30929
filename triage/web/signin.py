"""Who may see what: the gate before every route, signing in and out, and one's own password.

The gate lets nothing through that is not in :data:`PUBLIC` without a session, so a route
that somebody forgot to guard is closed, too. What an account may do is each route's
``Depends(require(role))``.
"""

import datetime as dt
import hmac
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Form, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triage.config import Config
from triage.errors import (
    AccountError,
    Forbidden,
    NotSignedIn,
    SignInError,
    SignInRefused,
    TooManyAttempts,
    TriageError,
)
from triage.web import problems
from triage.web.provider import ANSWER, Provider
from triage.worklist.accounts import LONGEST_PASSWORD, Role, User
from triage.worklist.sessions import Limits, Sessions, csrf_of, new_token

if TYPE_CHECKING:
    from triage.web import Site

CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf_token"

PUBLIC = ("/sign-in", "/sign-in/provider", ANSWER, "/healthz", "/readyz")
"""What is shown without a session: how to get one, and whether this part can work."""

STATIC = "/static/"
"""Style and scripts of the page; no data."""

FORMS = ("/sign-out", "/account/password")
"""Where a form brings the CSRF token, in a field that the route itself looks at."""

BEFORE_CHANGE = ("/account", "/account/password", "/sign-out")
"""All that is open while the password is a one-time password."""

PASSIVE = ("/api/v1/live", "/api/v1/operations")
"""A page that only listens is not somebody at work: the idle time runs on."""

STREAM_CHECK_SECONDS = 15.0
"""So often a stream asks whether its session still holds."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@cache
def require(role: Role) -> Callable[[Request], User]:
    """A dependency that gives the user, if the account has the role.

    Parameters
    ----------
    role : Role

    Returns
    -------
    callable
        For ``Annotated[User, Depends(require(Role.READER))]``. It raises
        :class:`NotSignedIn` (401, a page: 303 to the sign-in) and :class:`Forbidden` (403).
    """

    async def signed_in(request: Request) -> User:
        user: User | None = getattr(request.state, "user", None)
        if user is None:
            raise NotSignedIn("sign in first")
        if not user.may(role):
            raise Forbidden(f"this needs the role {role}: ask the operator for it")
        return user

    signed_in.role = role  # type: ignore[attr-defined]
    return signed_in  # type: ignore[return-value]


Viewer = Annotated[User, Depends(require(Role.VIEWER))]


class Gate:
    """Lets in who has a session, and only requests that come from our own pages.

    It leaves ``request.state.user``, ``request.state.csrf`` (what a page carries in its
    ``meta`` element) and ``request.state.token``.

    Parameters
    ----------
    app : ASGI application
    sessions : Sessions
    config : Config
    """

    def __init__(self, app: ASGIApp, sessions: Sessions, config: Config) -> None:
        self._app = app
        self._sessions = sessions
        self._config = config
        self._limits = limits_of(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, or refuse."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope)
        try:
            token = await self._admit(request)
        except SignInError as error:
            await problems.answer(request, error)(scope, receive, send)
            return
        if self._must_change_first(request):
            if problems.for_people(request) and request.method in _SAFE:
                await RedirectResponse("/account", 303)(scope, receive, send)
                return
            first = Forbidden("change the one-time password first, at /account")
            await problems.answer(request, first)(scope, receive, send)
            return
        if token is None:
            await self._app(scope, receive, send)
        else:
            await self._serve_while_signed_in(token, scope, receive, send)

    async def _admit(self, request: Request) -> str | None:
        """The session's token; None for what is public.

        Raises
        ------
        SignInError
        """
        unsafe = request.method not in _SAFE
        if unsafe:
            self._require_our_origin(request)
        path = request.url.path
        if path in PUBLIC or path.startswith(STATIC):
            return None
        token = request.cookies.get(session_cookie(self._config), "")
        active = path not in PASSIVE
        if not token:
            raise NotSignedIn("sign in first")
        user = await run_in_threadpool(self._sessions.user, token, self._limits, active=active)
        request.state.user, request.state.token = user, token
        request.state.csrf = csrf_of(token)
        if unsafe and path not in FORMS:
            require_csrf(request.headers.get(CSRF_HEADER, ""), token)
        return token

    def _must_change_first(self, request: Request) -> bool:
        user: User | None = getattr(request.state, "user", None)
        return user is not None and user.must_change and request.url.path not in BEFORE_CHANGE

    def _require_our_origin(self, request: Request) -> None:
        """RFC 6454; browsers name the page that a request which changes something comes from."""
        origin = request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "same-origin")
        ours = {self._config.web_origin}
        if not self._config.web_url:
            # Reached by an address that nobody told us: then by the one that was asked for.
            ours.add(f"{request.url.scheme}://{request.headers.get('host', '')}")
        if (origin is not None and origin not in ours) or site not in {"same-origin", "none"}:
            raise Forbidden(
                "the request does not come from a page of this service; its operator: does "
                "TRIAGE_WEB_URL say what people type?"
            )

    async def _serve_while_signed_in(
        self, token: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve; a stream ends when its session does."""
        streams, ended, checked = False, False, time.monotonic()

        async def watched(message: Message) -> None:
            nonlocal streams, ended, checked
            if message["type"] == "http.response.start":
                streams = any(
                    name == b"content-type" and value.startswith(b"text/event-stream")
                    for name, value in message["headers"]
                )
            elif streams and time.monotonic() - checked >= STREAM_CHECK_SECONDS:
                checked = time.monotonic()
                try:
                    await run_in_threadpool(self._sessions.user, token, self._limits, active=False)
                except TriageError:
                    ended = True
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    raise OSError("the session has ended") from None
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if not ended:
                raise


def limits_of(config: Config) -> Limits:
    """How long a session lasts here."""
    return Limits(
        dt.timedelta(minutes=config.session_idle_minutes), dt.timedelta(hours=config.session_hours)
    )


def session_cookie(config: Config) -> str:
    """The cookie's name; the prefix makes browsers refuse it without TLS (RFC 6265bis 4.1.3)."""
    return "__Host-triage" if config.web_is_secure else "triage"


def require_csrf(proof: str, token: str) -> None:
    """Refuse a request that does not bring what only our own pages know.

    Raises
    ------
    Forbidden
    """
    if not hmac.compare_digest(proof.encode(), csrf_of(token).encode()):
        raise Forbidden(
            f"the request lacks the header {CSRF_HEADER}, or it is another session's: load the "
            "page again"
        )


def local_path(text: str) -> str:
    """A path of ours to go to, or the list: never another site (OWASP: unvalidated redirects)."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return "/"
    fine = text.startswith("/") and not text.startswith("//") and "\\" not in text
    return text if fine and text.isprintable() and not (parts.scheme or parts.netloc) else "/"


def address_of(request: Request) -> str:
    """Where a request comes from."""
    return request.client.host if request.client else ""


router = APIRouter(include_in_schema=False)

Text = Annotated[str, Form(max_length=256)]
Password = Annotated[str, Form(max_length=4 * LONGEST_PASSWORD)]


@router.get("/sign-in")
def sign_in_page(request: Request, next: str = "/") -> Response:  # noqa: A002
    """The form, and the way to the identity provider if there is one."""
    return _sign_in_form(request, local_path(next))


@router.post("/sign-in")
def sign_in(
    request: Request,
    name: Text = "",
    password: Password = "",
    next: Annotated[str, Form(max_length=2_000)] = "/",  # noqa: A002
    csrf_token: Text = "",
) -> Response:
    """Begin a session with a local account."""
    site: Site = request.app.state.site
    destination = local_path(next)
    known = request.cookies.get(_form_cookie(site.config), "")
    if not known or not hmac.compare_digest(csrf_token.encode(), csrf_of(known).encode()):
        message = "This form was not yours or too old. Please try again."
        return _sign_in_form(request, destination, message, 403)
    try:
        token = site.worklist.sessions.sign_in(name, password, address_of(request))
    except TooManyAttempts as error:
        response = _sign_in_form(request, destination, _sentence(error), 429)
        response.headers["Retry-After"] = str(error.retry_seconds)
        return response
    except SignInError as error:
        return _sign_in_form(request, destination, _sentence(error), 401)
    return begin_session(site, token, destination)


@router.get("/sign-in/provider")
def depart(request: Request, next: str = "/") -> Response:  # noqa: A002
    """Send the browser to the identity provider."""
    site, provider = request.app.state.site, _provider(request)
    try:
        departure = provider.depart(local_path(next))
        site.worklist.sessions.begin_flow(departure.state, departure.flow, address_of(request))
    except SignInError as error:
        return _sign_in_form(request, local_path(next), _sentence(error), problems.status_of(error))
    response = RedirectResponse(departure.url, 303)
    _set(response, site.config, _flow_cookie(site.config), departure.state)
    return response


@router.get(ANSWER)
def arrive(request: Request, state: str = "") -> Response:
    """Take the browser back from the identity provider and begin a session."""
    site, provider = request.app.state.site, _provider(request)
    known = request.cookies.get(_flow_cookie(site.config), "")
    sessions, address = site.worklist.sessions, address_of(request)
    if not known or not hmac.compare_digest(known.encode(), state.encode()):
        message = "This sign-in is not one that this browser began. Please begin again."
        return _sign_in_form(request, "/", message, 403)
    try:
        flow = sessions.take_flow(state)
    except SignInError as error:
        return _sign_in_form(request, "/", _sentence(error), 403)
    try:
        identity = provider.arrive(dict(request.query_params), flow)
        token = sessions.sign_in_vouched(identity, state, address)
    except SignInError as error:
        sessions.refused(address, str(error))
        response = _sign_in_form(
            request, flow.destination, _sentence(error), problems.status_of(error)
        )
    else:
        response = begin_session(site, token, flow.destination)
    _forget(response, site.config, _flow_cookie(site.config))
    return response


@router.post("/sign-out")
def sign_out(request: Request, _user: Viewer, csrf_token: Text = "") -> Response:
    """End the session."""
    require_csrf(request.headers.get(CSRF_HEADER, csrf_token), request.state.token)
    site: Site = request.app.state.site
    site.worklist.sessions.sign_out(request.state.token)
    response = RedirectResponse("/sign-in", 303)
    _forget(response, site.config, session_cookie(site.config))
    # Pictures that the browser keeps are for who is signed in.
    response.headers["Clear-Site-Data"] = '"cache"'
    return response


@router.get("/account")
def account_page(request: Request, user: Viewer) -> Response:
    """One's own account."""
    return _account_form(request, user)


@router.post("/account/password")
def change_password(
    request: Request,
    user: Viewer,
    old: Password = "",
    new: Password = "",
    again: Password = "",
    csrf_token: Text = "",
) -> Response:
    """Change one's own password."""
    require_csrf(request.headers.get(CSRF_HEADER, csrf_token), request.state.token)
    site: Site = request.app.state.site
    if new != again:
        return _account_form(request, user, "The two new passwords differ.", 422)
    try:
        token = site.worklist.sessions.change_password(user, old, new, address_of(request))
    except (AccountError, SignInRefused) as error:
        return _account_form(request, user, _sentence(error), 422)
    except TooManyAttempts as error:
        return _account_form(request, user, _sentence(error), 429)
    return begin_session(site, token, "/")


@router.get("/api/v1/openapi.json")
def openapi(request: Request, _user: Viewer) -> Response:
    """What the API takes and gives (OpenAPI 3.1)."""
    return JSONResponse(request.app.openapi())


def begin_session(site: "Site", token: str, destination: str) -> Response:
    """Give the browser its session and send it on."""
    config = site.config
    site.worklist.sessions.sweep(limits_of(config))
    response = RedirectResponse(destination, 303)
    _set(response, config, session_cookie(config), token)
    _forget(response, config, _form_cookie(config))
    return response


def _sign_in_form(
    request: Request, destination: str, message: str = "", status: int = 200
) -> Response:
    """``sign_in.html`` gets ``next``, ``csrf``, ``provider`` (bool) and ``message``."""
    config = request.app.state.site.config
    known = request.cookies.get(_form_cookie(config)) or new_token()
    content = {
        "next": destination,
        "csrf": csrf_of(known),
        "provider": bool(config.oidc_issuer),
        "message": message,
    }
    page: Response = request.app.state.templates.TemplateResponse(
        request, "sign_in.html", content, status_code=status
    )
    _set(page, config, _form_cookie(config), known)
    return page


def _account_form(request: Request, user: User, message: str = "", status: int = 200) -> Response:
    """``account.html`` gets ``user``, ``csrf``, ``local`` (bool) and ``message``."""
    page: Response = request.app.state.templates.TemplateResponse(
        request,
        "account.html",
        {"user": user, "csrf": request.state.csrf, "local": user.local, "message": message},
        status_code=status,
    )
    return page


def _provider(request: Request) -> Provider:
    provider: Provider | None = request.app.state.provider
    if provider is None:
        raise HTTPException(404, "there is no identity provider here")
    return provider


def _flow_cookie(config: Config) -> str:
    return f"{session_cookie(config)}-flow"


def _form_cookie(config: Config) -> str:
    return f"{session_cookie(config)}-form"


def _set(response: Response, config: Config, name: str, value: str) -> None:
    response.set_cookie(
        name, value, path="/", secure=config.web_is_secure, httponly=True, samesite="lax"
    )


def _forget(response: Response, config: Config, name: str) -> None:
    response.delete_cookie(
        name, path="/", secure=config.web_is_secure, httponly=True, samesite="lax"
    )


def _sentence(error: TriageError) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."
