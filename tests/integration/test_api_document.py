"""The API against its own OpenAPI document, with requests that schemathesis makes up."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from fastapi.routing import iter_route_contexts
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.exams import FLAGGED, enter
from tests.web import Visitor, account, served, site_of
from triage.web import Site, build
from triage.worklist import Worklist
from triage.worklist.accounts import Role
from triage.worklist.readings import Said
from triage.worklist.schema import migrate, open_engine

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
EXAMPLES = 25
"""Of each operation, for and against its document."""

STREAM = "/api/v1/live"
"""Has no end, so it has a test of its own."""

UIDS = ["1.2.1", "1.2.2", "1.2.3", "1.2.4"]
"""Waiting; scored; read; readers disagree."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose items are in several states."""
    home = tmp_path_factory.mktemp("document")
    database = f"sqlite:///{home / 'worklist.sqlite'}"
    engine = open_engine(database, create=True)
    migrate(engine)
    engine.dispose()
    worklist = Worklist(database)
    account(worklist, "all", Role.READER, Role.OPERATOR)
    for uid in reversed(UIDS):
        enter(worklist, uid, None if uid == UIDS[0] else FLAGGED, ["ROTATED"], patient_id="P")
    worklist.readings.add(UIDS[2], Said("confirmed", "all"))
    worklist.readings.add(UIDS[3], Said("confirmed", "all"))
    worklist.readings.add(UIDS[3], Said("rejected", "another"))
    yield site_of(worklist, home)
    worklist.close()


@pytest.fixture(scope="module")
def signed_in(site: Site) -> Iterator[tuple[str, requests.Session]]:
    """Where it is served, and a session that may do everything."""
    with served(site) as address, Visitor(address) as visitor, requests.Session() as session:
        assert visitor.sign_in("all").status_code == 303
        session.trust_env = False
        session.cookies.update(dict(visitor.cookies))
        session.headers.update(visitor.with_csrf())
        yield address, session


def ask(operation: Any, mode: GenerationMode, address: str, session: requests.Session) -> None:
    """Send made up requests of an operation and hold the answers against the document."""

    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def once(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        # Made up UIDs hardly ever lead to an item.
        if "uid" in case.path_parameters and data.draw(st.booleans()):
            case.path_parameters["uid"] = data.draw(st.sampled_from(UIDS))
            if operation.method == "post" and data.draw(st.booleans()):
                case.headers["If-Match"] = "*"
        case.validate_response(case.call(base_url=address, session=session), checks=CHECKS)

    once()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=str)
def test_every_answer_stands_in_the_document(
    site: Site, signed_in: tuple[str, requests.Session], mode: GenerationMode
) -> None:
    """Whatever is asked, by the document or against it: no 5xx, nothing undocumented."""
    address, session = signed_in
    document = session.get(f"{address}/api/v1/openapi.json").json()
    asked = 0
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = result.ok()
        if not operation.path.startswith("/api/") or operation.path == STREAM:
            continue
        asked += 1
        try:
            ask(operation, mode, address, session)
        except Unsatisfiable:  # nothing can be sent against what takes everything
            assert mode is GenerationMode.NEGATIVE
    assert asked >= 11


def test_the_document_has_every_route_of_the_api(
    site: Site, signed_in: tuple[str, requests.Session]
) -> None:
    """And says of each what it may answer to whom it refuses."""
    address, session = signed_in
    paths = session.get(f"{address}/api/v1/openapi.json").json()["paths"]
    served = {
        (method.lower(), route.path)
        for route in iter_route_contexts(build(site).routes)
        for method in (route.methods or ())
        if route.path.startswith("/api/v1/") and method != "HEAD"
    }
    documented = {(m, path) for path, methods in paths.items() for m in methods}
    assert served - {("get", "/api/v1/openapi.json")} <= documented
    for method, path in served & documented:
        if path != "/api/v1/openapi.json":
            assert {"401", "403"} <= set(paths[path][method]["responses"]), path
