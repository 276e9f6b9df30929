"""The page as a browser meets it: a served site, and visitors who sign in."""

import datetime as dt
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from argon2 import PasswordHasher

from tests.conftest import wait_for
from triage.app import _network
from triage.config import Config
from triage.registry import Registry
from triage.spool import Spool
from triage.web import Site, build
from triage.web.server import listen, serve, tls_context
from triage.worklist import Worklist
from triage.worklist.accounts import Role
from triage.worklist.tables import Account

PASSWORD = "correct horse battery staple"
"""Of every account that :func:`account` makes."""


def site_of(worklist: Worklist, home: Path, **settings: object) -> Site:
    """A site on a worklist; its port is chosen when it is served."""
    config = Config.model_validate({"home": str(home), "web_port": 0, **settings})
    return Site(
        config, worklist, Spool(config.spool_folder), Registry(config.models_folder), _network
    )


@contextmanager
def served(site: Site) -> Iterator[str]:
    """Serve a site from a thread, as the role `web` does; its address."""
    tls = tls_context(site.config)
    listening = listen(site.config)
    host, port = listening.getsockname()[:2]
    app = build(site)
    thread = threading.Thread(target=serve, args=(app, site.config, listening, tls, site.stop))
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://{host}:{port}"
    finally:
        site.stop.set()
        thread.join(20)
        assert not thread.is_alive()


def account(worklist: Worklist, name: str, *roles: Role) -> None:
    """A local account whose password is :data:`PASSWORD`.

    It is hashed cheaply: what a hash costs stands in the hash, and so does what it costs to
    verify it. That real ones are dear has tests of its own.
    """
    row = Account(
        name=name,
        display_name=name,
        roles=[role.value for role in roles],
        password_hash=PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD),
        must_change=False,
        disabled=False,
        created_at=dt.datetime.now(dt.UTC),
    )
    with worklist._transaction(write=True) as session:
        session.add(row)


class Visitor(httpx.Client):
    """A browser without a screen: keeps cookies, follows nothing by itself."""

    def __init__(self, url: str, **options: object) -> None:
        super().__init__(base_url=url, timeout=30, trust_env=False, **options)  # type: ignore[arg-type]

    def form_token(self, path: str = "/sign-in") -> str:
        """The CSRF token in a page's form."""
        return token_in(self.get(path).text)

    def sign_in(self, name: str, password: str = PASSWORD, next: str = "/") -> httpx.Response:  # noqa: A002
        """Fill in the form and send it."""
        form = {
            "csrf_token": self.form_token(),
            "name": name,
            "password": password,
            "next": next,
        }
        return self.post("/sign-in", data=form)

    def with_csrf(self) -> dict[str, str]:
        """The header that a script of our page sends."""
        return {"X-CSRF-Token": self.form_token("/account")}

    def sign_out(self) -> httpx.Response:
        """Press the button."""
        return self.post("/sign-out", data={"csrf_token": self.form_token("/account")})


def token_in(page: str) -> str:
    """The CSRF token that a page holds."""
    found = re.search(r'name="csrf[-_]token" (?:value|content)="([0-9a-f]{64})"', page)
    assert found is not None, page
    return found.group(1)


def wait_for_page(url: str) -> None:
    """Wait until a page answers."""

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/sign-in", trust_env=False, verify=False).status_code == 200
        except httpx.TransportError:
            return False

    wait_for(answers)
