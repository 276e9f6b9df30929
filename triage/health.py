"""Whether a part lives and can work, and its metrics: a few pages on a port of their own.

``/healthz`` is about the process alone: it says no when starting it again would help.
``/readyz`` is about what it needs: it says no while work would come to nothing. Both say ok or
why, in words that are the same everywhere, and need no sign-in. ``/metrics`` is for Prometheus.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, Gauge, make_wsgi_app

from triage.errors import TriageError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

STALLED_SECONDS = 180.0
"""A loop that has not come round for so long is stuck: no exam and no lock takes half of it."""

FRESH_SECONDS = 1.0
"""So long an answer is given again: asking often costs the database nothing."""

PATIENCE_SECONDS = 10.0
"""So long somebody waits for another's look to end."""

REQUEST_SECONDS = 10.0


class Health:
    """What one part needs, and whether it moves.

    Parameters
    ----------
    needs : mapping of str to callable
        Each raises a :class:`TriageError` while what it is named after is not there.
    """

    def __init__(self, needs: Mapping[str, Callable[[], object]]) -> None:
        self._needs = dict(needs)
        self._log = structlog.get_logger("health")
        self._looking = threading.Lock()
        self._looked = float("-inf")
        self._found: tuple[str, ...] = ("starting",)
        self._beat: float | None = None

    def beat(self) -> None:
        """The part's loop came round; a part without a loop never calls this."""
        self._beat = time.monotonic()

    def stalled(self) -> str:
        """Why the process ought to be started again; empty while it need not."""
        beat = self._beat
        if beat is not None and time.monotonic() - beat > STALLED_SECONDS:
            return "its loop does not move"
        return ""

    def missing(self) -> tuple[str, ...]:
        """What is not there, in a few words each; empty if the part can work."""
        if not self._looking.acquire(timeout=PATIENCE_SECONDS):
            return ("no answer in time",)
        try:
            if time.monotonic() - self._looked > FRESH_SECONDS:
                self._found = tuple(filter(None, map(self._look, self._needs)))
                self._looked = time.monotonic()
            return self._found
        finally:
            self._looking.release()

    def _look(self, name: str) -> str:
        try:
            self._needs[name]()
        except TriageError as error:
            # For the log, not for who asks: it may name hosts and folders.
            self._log.warning("not ready", action="not_ready", of=name, error=str(error))
            return f"no {name}"
        return ""


class Port:
    """Serves health and metrics of one part until closed.

    Parameters
    ----------
    address : tuple of str and int
    health : Health
    registry : CollectorRegistry

    Raises
    ------
    OSError
        The address cannot be listened on.
    """

    def __init__(
        self, address: tuple[str, int], health: Health, registry: CollectorRegistry
    ) -> None:
        ready = Gauge("triage_ready", "1 while the part can work.", registry=registry)
        ready.set_function(lambda: float(not health.missing()))
        self._server = _Server(address, _Handler)
        self._server.set_app(_pages(health, make_wsgi_app(registry)))
        self.port: int = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def _pages(health: Health, metrics: "WSGIApplication") -> "WSGIApplication":
    def answer(environment: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "")
        if environment.get("REQUEST_METHOD") not in {"GET", "HEAD"}:
            return _text(start, "405 Method Not Allowed", "only GET\n")
        if path == "/metrics":
            return metrics(environment, start)
        if path == "/healthz":
            why = health.stalled()
        elif path == "/readyz":
            why = "; ".join(health.missing())
        else:
            return _text(start, "404 Not Found", "here are /healthz, /readyz and /metrics\n")
        return _text(start, "503 Service Unavailable" if why else "200 OK", f"{why or 'ok'}\n")

    return answer


def _text(start: "StartResponse", status: str, body: str) -> list[bytes]:
    content = body.encode()
    start(
        status,
        [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
        ],
    )
    return [content]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 16

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that goes away in the middle is no event."""

    def server_bind(self) -> None:
        """Without looking up the host's name, which may ask a server that is gone."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def log_message(self, *_args: object) -> None:
        """Nothing: it is asked every few seconds."""
