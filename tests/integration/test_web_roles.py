"""Every route times every role, as a table.

A route that is not in the table fails the test, so that none is added without a word on
who may call it.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.routing import iter_route_contexts

from tests.web import Visitor, account, served, site_of
from triage.web import Site, build
from triage.web.signin import PUBLIC
from triage.worklist import Worklist
from triage.worklist.accounts import Role
from triage.worklist.schema import migrate, open_engine

ANYBODY = None

NEEDS: dict[str, Role | None] = {
    "GET /static/nothing": ANYBODY,
    "GET /healthz": ANYBODY,
    "GET /readyz": ANYBODY,
    "GET /sign-in": ANYBODY,
    "POST /sign-in": ANYBODY,
    "GET /sign-in/provider": ANYBODY,
    "GET /sign-in/provider/answer": ANYBODY,
    "POST /sign-out": Role.VIEWER,
    "GET /account": Role.VIEWER,
    "POST /account/password": Role.VIEWER,
    "GET /": Role.VIEWER,
    "GET /exams/{uid}": Role.VIEWER,
    "GET /exams/{uid}/picture": Role.VIEWER,
    "GET /exams/{uid}/heat-map": Role.VIEWER,
    "GET /adjudication": Role.VIEWER,
    "GET /dashboard": Role.VIEWER,
    "GET /operations": Role.OPERATOR,
    "GET /api/v1/openapi.json": Role.VIEWER,
    "GET /api/v1/session": Role.VIEWER,
    "GET /api/v1/items": Role.VIEWER,
    "GET /api/v1/items/{uid}": Role.VIEWER,
    "GET /api/v1/items/{uid}/priors": Role.VIEWER,
    "POST /api/v1/items/{uid}/readings": Role.READER,
    "DELETE /api/v1/items/{uid}/readings/{reading_id}": Role.READER,
    "GET /api/v1/adjudication": Role.VIEWER,
    "GET /api/v1/models/{version}": Role.VIEWER,
    "GET /api/v1/statistics": Role.VIEWER,
    "GET /api/v1/operations": Role.OPERATOR,
    "GET /api/v1/drift": Role.VIEWER,
    "GET /api/v1/live": Role.VIEWER,
    "POST /api/v1/readings/import": Role.OPERATOR,
    "GET /api/v1/readings/export": Role.OPERATOR,
}
"""What each route needs. ``{parameters}`` stand as in the route."""

VISITORS: dict[str, tuple[Role, ...]] = {
    "nobody": (),
    "viewer": (Role.VIEWER,),
    "reader": (Role.READER,),
    "operator": (Role.OPERATOR,),
    "both": (Role.READER, Role.OPERATOR),
}

VALUES = {"uid": "1.2.3", "version": "none", "id": "1", "reading_id": "1"}
"""For the parameters of paths."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with a visitor of each kind."""
    home = tmp_path_factory.mktemp("roles")
    database = f"sqlite:///{home / 'worklist.sqlite'}"
    engine = open_engine(database, create=True)
    migrate(engine)
    engine.dispose()
    worklist = Worklist(database)
    for name, roles in VISITORS.items():
        if roles:
            account(worklist, name, *roles)
    yield site_of(worklist, home)
    worklist.close()


@pytest.fixture(scope="module")
def url(site: Site) -> Iterator[str]:
    """Where it is served."""
    with served(site) as address:
        yield address


@pytest.fixture(scope="module")
def visitors(url: str) -> Iterator[dict[str, Visitor]]:
    """Each signed in, but for nobody."""
    made = {name: Visitor(url) for name in VISITORS}
    for name, visitor in made.items():
        if VISITORS[name]:
            assert visitor.sign_in(name).status_code == 303
    yield made
    for visitor in made.values():
        visitor.close()


def may(visitor: str, needed: Role | None) -> bool:
    """What the table says, in words of its own: reader and operator imply viewer, no more."""
    roles = VISITORS[visitor]
    return needed is ANYBODY or needed in roles or (needed is Role.VIEWER and bool(roles))


def routes(site: Site) -> set[str]:
    """Every method of every route."""
    found = set()
    for route in iter_route_contexts(build(site).routes):
        if route.methods is None:  # files
            found.add(f"GET {route.path}/nothing")
            continue
        found |= {f"{method} {route.path}" for method in route.methods - {"HEAD"}}
    return found


def test_the_table_names_every_route_and_no_other(site: Site) -> None:
    """Who adds a route says who may call it."""
    assert routes(site) == set(NEEDS)


def test_only_the_way_in_is_open_to_anybody() -> None:
    """And the files that the sign-in page is drawn with."""
    open_to_all = {route.split()[1] for route, role in NEEDS.items() if role is ANYBODY}
    assert open_to_all == {*PUBLIC, "/static/nothing"}


@pytest.mark.parametrize("visitor", VISITORS)
@pytest.mark.parametrize("route", NEEDS)
def test_a_route_serves_whom_the_table_says(
    visitors: dict[str, Visitor], route: str, visitor: str
) -> None:
    """Nobody: 401, or a page: the sign-in. Without the role: 403. Else whatever it answers."""
    method, path = route.split()
    path = re.sub(r"{(\w+)(:path)?}", lambda found: VALUES[found[1]], path)
    client = visitors[visitor]
    headers = {"Accept": "application/json"}
    unsafe = method not in {"GET", "HEAD"}
    if unsafe and VISITORS[visitor]:
        headers |= client.with_csrf()
    if route == "POST /sign-out":  # or the next tests would find nobody here
        with Visitor(str(client.base_url)) as again:
            again.cookies = client.cookies
            answer = again.post(path, headers={**headers, "X-CSRF-Token": "0" * 64})
        assert answer.status_code == (403 if VISITORS[visitor] else 303)
        return
    options = {"json": {}} if unsafe and path.startswith("/api/") else {}
    with client.stream(method, path, headers=headers, **options) as answer:  # type: ignore[arg-type]
        status, location = answer.status_code, answer.headers.get("location", "")
    refused = status == 401 or (status == 303 and location.startswith("/sign-in"))
    if may(visitor, NEEDS[route]):
        # A wrong password or a form without token is no matter of roles.
        assert NEEDS[route] is ANYBODY or not refused
        assert NEEDS[route] is ANYBODY or status != 403
        assert status < 500
    elif VISITORS[visitor]:
        assert status == 403
    else:
        assert refused


def test_each_route_that_is_not_public_says_itself_what_it_needs(site: Site) -> None:
    """The gate alone would let any account in."""
    for route in iter_route_contexts(build(site).routes):
        if route.methods is None or route.path in PUBLIC:
            continue
        found = {getattr(needed.call, "role", None) for needed in route.dependant.dependencies} - {
            None
        }
        assert len(found) == 1, route.path
        for method in route.methods - {"HEAD"}:
            assert found == {NEEDS[f"{method} {route.path}"]}


def test_a_folder_of_files_shows_only_its_files(url: str, tmp_path: Path) -> None:
    """No way up."""
    with Visitor(url) as visitor:
        for path in ("/static/", "/static/..%2f__init__.py", "/static/../signin.py", "/static/."):
            assert visitor.get(path).status_code in {303, 404}
