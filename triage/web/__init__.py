"""The radiologist's page and the API under it. Only the role `web` imports this.

:func:`build` makes the application of a :class:`Site`. What needs no sign-in stands in
:data:`triage.web.signin.PUBLIC`; everything else is closed before its route is looked up.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.templating import Jinja2Templates
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from triage import __version__
from triage.config import Config
from triage.errors import ModelError
from triage.health import Health
from triage.registry import ModelVersion, Registry
from triage.scoring import Scorer
from triage.spool import Spool
from triage.telemetry import Telemetry
from triage.web import api, pages, probes, problems, signin
from triage.web.headers import BodyLimit, Headers
from triage.web.live import Live
from triage.web.pictures import Pictures
from triage.web.provider import Provider
from triage.web.signin import require
from triage.worklist import Worklist
from triage.worklist.accounts import Role, User

__all__ = ["Role", "Site", "User", "build", "require"]

FOLDER = Path(__file__).parent

MAX_BODY_BYTES = 65_536
"""Of a request."""

LONGER_BODY_BYTES = {"/api/v1/readings/import": 33_554_432}
"""Of a request to one of these paths."""


@dataclass(frozen=True, slots=True)
class Site:
    """What the page and the API work with, wired by :func:`triage.app.web`.

    Attributes
    ----------
    config : Config
    worklist : Worklist
        With its ``audit`` and ``accounts``.
    spool : Spool
    models : Registry
    scorer : callable
        From a :class:`ModelVersion` to its network, loaded anew at each call.
    stop : threading.Event
        Set when the service ends: streams end then, too.
    telemetry : Telemetry
    health : Health
    """

    config: Config
    worklist: Worklist
    spool: Spool
    models: Registry
    scorer: Callable[[ModelVersion], Scorer]
    stop: threading.Event = field(default_factory=threading.Event)
    telemetry: Telemetry = field(default_factory=Telemetry)
    health: Health = field(default_factory=lambda: Health({}))


def build(site: Site) -> FastAPI:
    """The application. Routes find the site at ``request.app.state.site``.

    Raises
    ------
    ServiceError
        A secret or a certificate of the sign-in cannot be read.
    """
    app = FastAPI(
        title="cxr-triage",
        description="A triage aid, not a diagnosis.",
        version=__version__,
        # The document is served to who has signed in; its pages would come from a CDN.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        middleware=[
            Middleware(Headers, secure=site.config.web_is_secure),
            Middleware(problems.Boundary),
            Middleware(BodyLimit, most=MAX_BODY_BYTES, longer=LONGER_BODY_BYTES),
            Middleware(signin.Gate, sessions=site.worklist.sessions, config=site.config),
        ],
        # Nothing beside a PACS reports to elsewhere because of a variable of the environment.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.site = site
    app.state.templates = Jinja2Templates(FOLDER / "templates")
    app.state.pictures = Pictures(site.spool, site.models, site.scorer)
    app.state.provider = Provider(site.config) if site.config.oidc_issuer else None
    problems.install(app)
    app.mount("/static", _Static(directory=FOLDER / "static"), name="static")
    app.include_router(signin.router)
    app.include_router(pages.router)
    app.include_router(probes.router)
    app.include_router(api.router)
    app.state.live = Live(site.worklist, site.stop)
    app.state.calibrated = _calibrated(site.models)
    return app


class _Static(StaticFiles):
    """Style and scripts: kept by browsers, and asked for again with each page.

    So a page of one version never runs the scripts of another.
    """

    def file_response(self, *args: Any, **options: Any) -> Response:
        """A file, or that it is still the same."""
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _calibrated(models: Registry) -> Callable[[str | None], bool]:
    """Tells of a model version whether it states that its probabilities are calibrated."""
    known: dict[str, bool] = {}

    def states(version: str | None) -> bool:
        if version is None:
            return False
        if version not in known:
            try:
                known[version] = "calibration" in models.version(version).description
            except ModelError:  # the version was removed since it scored
                return False
        return known[version]

    return states
