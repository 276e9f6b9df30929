"""Serving the page: the socket, TLS, the proxy before it, and a prompt end."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any, cast

import structlog
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol

from triage.config import Config, Network
from triage.errors import ServiceError

GRACE_SECONDS = 3
"""So long an answer that has begun may take after the end was asked for; a stream has none."""

BACKLOG = 512

OPENING_SECONDS = 10.0
"""From a connection to its first request."""


def listen(config: Config) -> socket.socket:
    """The page's port, opened.

    Raises
    ------
    ServiceError
        It cannot be had.
    """
    try:
        family = socket.getaddrinfo(
            config.web_host, config.web_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0][0]
        listening = socket.create_server(
            (config.web_host, config.web_port), family=family, backlog=BACKLOG
        )
    except OSError as error:
        why = error.strerror or str(error)
        raise ServiceError(
            f"cannot serve the page on {config.web_host} port {config.web_port}: {why}: set "
            "TRIAGE_WEB_HOST and TRIAGE_WEB_PORT to an address of this machine and a free port, "
            "or leave the part `web` out of --roles"
        ) from error
    # What is accepted inherits it. asyncio would set it, but not on a socket that it was given;
    # without it the second half of a short answer waits 40 ms for the first one's receipt.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def tls_context(config: Config) -> ssl.SSLContext | None:
    """TLS 1.2 and 1.3 as RFC 9325 recommends; None without a certificate.

    Raises
    ------
    ServiceError
        A file cannot be read, or they do not belong together.
    """
    certificate, key = config.web_tls_certificate, config.web_tls_key
    if certificate is None or key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ServiceError(
            f"TRIAGE_WEB_TLS_CERTIFICATE {certificate} and TRIAGE_WEB_TLS_KEY {key} cannot be used "
            f"({why}): give a PEM certificate and its PEM key without a password"
        ) from error
    return context


def serve(
    app: ASGIApp,
    config: Config,
    listening: socket.socket,
    tls: ssl.SSLContext | None,
    stop: threading.Event,
) -> None:
    """Serve until told to stop.

    Parameters
    ----------
    app : ASGI application
    config : Config
    listening : socket
        From :func:`listen`; closed at the end.
    tls : SSLContext or None
        From :func:`tls_context`.
    stop : threading.Event

    Raises
    ------
    ServiceError
        The application cannot start.
    """
    if config.web_behind_proxy:
        app = BehindProxy(app, config.web_behind_proxy)
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        http=_Protocol,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )
    server = _Server(settings)
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if stop.wait(0.5):
                server.should_exit = True
                return

    watcher = threading.Thread(target=watch, name="web-stop", daemon=True)
    watcher.start()
    host, port = listening.getsockname()[:2]
    structlog.get_logger("web").info(
        "serving", action="web_listening", host=host, port=port, url=config.web_origin
    )
    try:
        asyncio.run(server.serve([listening]))
    except SystemExit:  # of uvicorn, which has logged nothing that we show
        raise ServiceError("the page cannot be served: its application did not start") from None
    finally:
        ended.set()
        listening.close()


class BehindProxy:
    """Answers the proxies alone, and believes what they say of who asks.

    Parameters
    ----------
    app : ASGI application
    proxies : tuple of networks
    """

    def __init__(self, app: ASGIApp, proxies: tuple[Network, ...]) -> None:
        believed = [str(each) for each in proxies]
        # The same interface, written down twice: once by Starlette, once by uvicorn.
        self._app = cast("ASGIApp", ProxyHeadersMiddleware(cast("Any", app), believed))
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, or close the door."""
        if scope["type"] == "http" and not self._is_proxy(scope):
            body = b"Use the address of the proxy.\n"
            headers = [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
            ]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send)

    def _is_proxy(self, scope: Scope) -> bool:
        try:
            address = ipaddress.ip_address(scope["client"][0].partition("%")[0])
        except (TypeError, ValueError):
            return False
        plain = getattr(address, "ipv4_mapped", None) or address
        return any(plain in network for network in self._proxies)


class _Protocol(H11Protocol):
    """A connection that asks for nothing is not held open."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give it some time for its first request's headers."""
        super().connection_made(transport)
        self.loop.call_later(OPENING_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        asked = getattr(self, "cycle", None) is not None
        if not asked and not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """The process has its own way with signals: :func:`triage.supervisor.stop_on_signals`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _no_password() -> str:
    raise ValueError("the key has a password")
