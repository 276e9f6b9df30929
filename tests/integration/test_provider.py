"""Signing in at an identity provider: a real one in a process of its own, and a hostile one."""

import base64
import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from tests.conftest import free_port, wait_for
from tests.web import Visitor, account, served, site_of
from triage.errors import ConfigError, ServiceError
from triage.web import Site, build
from triage.web.provider import Provider
from triage.worklist import Worklist
from triage.worklist.accounts import Role

CLIENT, SECRET = "cxr-triage", "a-client-secret"
SETTINGS = {
    "oidc_client_id": CLIENT,
    "oidc_roles": ["radiology=reader", "it-pacs=operator", "house=viewer"],
}


@pytest.fixture
def site_at(worklist: Worklist, tmp_path: Path) -> Callable[..., Site]:
    """Makes a site that believes an identity provider."""
    secret = tmp_path / "client-secret"
    secret.write_text(f"{SECRET}\n")

    def new(issuer: str, **settings: object) -> Site:
        port = free_port()
        fixed = {
            "web_port": port,
            "oidc_issuer": issuer,
            "oidc_client_secret_file": str(secret),
            **SETTINGS,
        }
        return site_of(worklist, tmp_path, **{**fixed, **settings})

    return new


def audited(worklist: Worklist) -> list[tuple[str, str]]:
    """The audit trail in short."""
    return [(record.action, record.actor) for record in worklist.audit.records()]


# A provider that others have written (PyPI: oidc-provider-mock, on Authlib's server side)


@pytest.fixture(scope="module")
def foreign() -> Iterator[str]:
    """The issuer of a provider that runs as a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    issuer = f"http://localhost:{port}"

    def answers() -> bool:
        try:
            httpx.get(f"{issuer}/.well-known/openid-configuration", trust_env=False)
        except httpx.TransportError:
            return False
        return True

    wait_for(answers)
    yield issuer
    process.terminate()
    process.wait(10)


def through(visitor: Visitor, subject: str, next: str = "/") -> httpx.Response:  # noqa: A002
    """The whole way: to the provider, its form, and back."""
    away = visitor.get("/sign-in/provider", params={"next": next})
    assert away.status_code == 303
    with httpx.Client(trust_env=False) as browser:
        form = browser.get(away.headers["location"])
        assert form.status_code == 200
        back = browser.post(away.headers["location"], data={"sub": subject})
    assert back.status_code == 302
    target = urlsplit(back.headers["location"])
    return visitor.get(f"{target.path}?{target.query}")


def test_an_account_is_made_at_the_first_sign_in_and_has_the_groups_roles(
    foreign: str, site_at: Callable[..., Site], worklist: Worklist
) -> None:
    """Name, display name and roles come from the provider; at each sign-in anew."""
    person = {
        "preferred_username": "Zoe.Chen",
        "name": "Zoë Chen",
        "groups": ["radiology", "house", "x"],
    }
    httpx.put(f"{foreign}/users/s-17", json=person, trust_env=False).raise_for_status()
    with served(site_at(foreign)) as url, Visitor(url) as visitor:
        assert "/sign-in/provider" in visitor.get("/sign-in").text
        answer = through(visitor, "s-17", "/exams/1.2.3")
        assert (answer.status_code, answer.headers["location"]) == (303, "/exams/1.2.3")
        page = visitor.get("/account").text
        assert "Zoë Chen" in page
        assert 'name="old"' not in page  # no password of hers is kept here
        (record,) = worklist.accounts.records()
        assert (record.name, record.roles, record.kind) == (
            "zoe.chen",
            ("reader", "viewer"),
            "provider",
        )
        renamed = {**person, "preferred_username": "zoe.miller", "groups": ["it-pacs"]}
        httpx.put(f"{foreign}/users/s-17", json=renamed, trust_env=False).raise_for_status()
        assert through(visitor, "s-17").status_code == 303
    (record,) = worklist.accounts.records()
    assert (record.name, record.roles) == ("zoe.chen", ("operator",))
    assert [action for action, _ in audited(worklist)] == [
        "ACCOUNT_ADDED",
        "SIGNED_IN",
        "ACCOUNT_ROLES",
        "SIGNED_IN",
    ]


def test_who_is_in_no_group_with_a_role_is_refused(
    foreign: str, site_at: Callable[..., Site], worklist: Worklist
) -> None:
    """No account is made."""
    for groups in (["cardiology"], [], "", {"radiology": True}, None, 7):
        person = {"preferred_username": "x", "groups": groups}
        httpx.put(f"{foreign}/users/s-18", json=person, trust_env=False).raise_for_status()
        with served(site_at(foreign)) as url, Visitor(url) as visitor:
            answer = through(visitor, "s-18")
            assert answer.status_code == 401
            assert "None of your groups has a role here" in answer.text
            assert visitor.get("/account").status_code == 303
    assert worklist.accounts.records() == []
    assert audited(worklist) == [("SIGN_IN_REFUSED", "unknown")] * 6


def test_a_provider_s_name_is_never_another_s_account(
    foreign: str, site_at: Callable[..., Site], worklist: Worklist
) -> None:
    """Nor that of a local account: who may choose a name there would be anybody here."""
    account(worklist, "operator", Role.OPERATOR)
    person = {"preferred_username": "Operator", "groups": "radiology"}
    httpx.put(f"{foreign}/users/s-19", json=person, trust_env=False).raise_for_status()
    with served(site_at(foreign)) as url, Visitor(url) as visitor:
        answer = through(visitor, "s-19")
        assert answer.status_code == 401
        assert "another account here has the name" in answer.text.lower()
    assert [record.kind for record in worklist.accounts.records()] == ["local"]


def test_an_account_that_is_disabled_here_stays_out(
    foreign: str, site_at: Callable[..., Site], worklist: Worklist
) -> None:
    """Whatever the provider says."""
    person = {"preferred_username": "leaver", "groups": ["radiology"]}
    httpx.put(f"{foreign}/users/s-20", json=person, trust_env=False).raise_for_status()
    with served(site_at(foreign)) as url, Visitor(url) as visitor:
        assert through(visitor, "s-20").status_code == 303
        worklist.accounts.disable("leaver", "test")
        assert visitor.get("/account").status_code == 303
        answer = through(visitor, "s-20")
    assert answer.status_code == 401
    assert "disabled" in answer.text


# A provider of our own, which checks what a careful one checks, and lies on demand


@dataclass
class Liar:
    """An OpenID provider in a thread. ``spoil`` changes what it says."""

    server: ThreadingHTTPServer
    key: Any = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "k1"}))
    spoil: dict[str, Any] = field(default_factory=dict)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    redeemed: list[dict[str, str]] = field(default_factory=list)

    @property
    def issuer(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def metadata(self) -> dict[str, Any]:
        """What it publishes (Discovery 1.0, section 3)."""
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "userinfo_endpoint": f"{self.issuer}/me",
            "id_token_signing_alg_values_supported": ["RS256"],
            **self.spoil.get("metadata", {}),
        }

    def authorize(self, asked: dict[str, str]) -> dict[str, str]:
        """The query it sends the browser back with, at once."""
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT
        assert "openid" in asked["scope"].split()
        assert asked["code_challenge_method"] == "S256"
        assert len(asked["state"]) >= 32
        assert len(asked["nonce"]) >= 32
        code = f"code-{len(self.codes)}"
        self.codes[code] = asked
        return {"code": code, "state": asked["state"], **self.spoil.get("answer", {})}

    def token(self, headers: Any, body: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Redeems a code: once, for its client, for who began (RFC 6749 4.1.3, RFC 7636 4.6)."""
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        shown = (headers["Authorization"], body.get("client_id"), body.get("client_secret"))
        ways = {
            "basic": (f"Basic {basic}", None, None),
            "post": (None, CLIENT, SECRET),
            "none": (None, CLIENT, None),
        }
        if shown != ways[self.spoil.get("way", "basic")]:
            return 401, {"error": "invalid_client"}
        asked = self.codes.pop(body.get("code", ""), None)
        challenge = hashlib.sha256(body.get("code_verifier", "").encode()).digest()
        expected = base64.urlsafe_b64encode(challenge).rstrip(b"=").decode()
        if (
            asked is None
            or asked["code_challenge"] != expected
            or asked["redirect_uri"] != body.get("redirect_uri")
        ):
            return 400, {"error": "invalid_grant"}
        self.redeemed.append(body)
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.issuer, "sub": "s-1", "aud": CLIENT, "iat": now, "exp": now + 300,
            "nonce": asked["nonce"], "preferred_username": "zoe", "groups": ["radiology"],
            **self.spoil.get("claims", {}),
        }  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        header = {"alg": "RS256", "kid": "k1", **self.spoil.get("header", {})}
        signing = self.spoil.get("key", self.key)
        signed = jwt.encode(header, claims, signing, algorithms=[header["alg"]])
        token = {"access_token": "at", "token_type": "Bearer", "id_token": signed}
        return self.spoil.get("token", (200, token))  # type: ignore[no-any-return]


@pytest.fixture
def liar() -> Iterator[Liar]:
    """A provider that is honest until it is told to lie."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked = dict(parse_qsl(parts.query))
            if parts.path == "/authorize":
                self.send_response(302)
                answer = urlencode(told.authorize(asked))
                self.send_header("Location", f"{asked['redirect_uri']}?{answer}")
                self.end_headers()
                return
            pages: dict[str, Any] = {
                "/.well-known/openid-configuration": told.metadata(),
                "/keys": told.spoil.get(
                    "keys", {"keys": [told.key.as_dict(private=False, alg="RS256")]}
                ),
                "/me": told.spoil.get("me", {"sub": "s-1"}),
            }
            self.answer(told.spoil.get("status", 200), pages[parts.path])

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            fields = {name: values[0] for name, values in parse_qs(body).items()}
            self.answer(*told.token(self.headers, fields))

        def answer(self, status: int, content: Any) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    told = Liar(server)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield told
    server.shutdown()
    thread.join()
    server.server_close()


def there(visitor: Visitor) -> str:
    """To the provider; where it sends the browser back to."""
    away = visitor.get("/sign-in/provider")
    assert away.status_code == 303, away.text
    back = httpx.get(away.headers["location"], trust_env=False)
    assert back.status_code == 302
    target = urlsplit(back.headers["location"])
    return f"{target.path}?{target.query}"


def test_an_honest_provider_lets_in(liar: Liar, site_at: Callable[..., Site]) -> None:
    """It has seen PKCE, the client's secret, and the redirect URI of this site."""
    site = site_at(liar.issuer)
    with served(site) as url, Visitor(url) as visitor:
        answer = visitor.get(there(visitor))
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert visitor.get("/account").status_code == 200
        assert "triage-flow" not in visitor.cookies
    (redeemed,) = liar.redeemed
    assert redeemed["redirect_uri"] == f"{site.config.web_origin}/sign-in/provider/answer"
    assert len(redeemed["code_verifier"]) >= 43
    assert "client_secret" not in redeemed


def test_a_client_shows_its_secret_as_the_provider_wants_it(
    liar: Liar, site_at: Callable[..., Site]
) -> None:
    """In the body where it takes no Basic (RFC 6749 2.3.1); a public client has none to show."""
    posted = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    liar.spoil = {"way": "post", "metadata": posted}
    with served(site_at(liar.issuer)) as url, Visitor(url) as visitor:
        assert visitor.get(there(visitor)).status_code == 303
    liar.spoil = {"way": "none"}
    with served(site_at(liar.issuer, oidc_client_secret_file="")) as url, Visitor(url) as visitor:
        assert visitor.get(there(visitor)).status_code == 303


NOW = int(time.time())
LIES: dict[str, dict[str, Any]] = {
    "another issuer": {"claims": {"iss": "https://evil.test"}},
    "no issuer": {"claims": {"iss": None}},
    "another audience": {"claims": {"aud": "another-client"}},
    "several audiences without our party": {"claims": {"aud": [CLIENT, "x"], "azp": "x"}},
    "another nonce": {"claims": {"nonce": "n" * 43}},
    "no nonce": {"claims": {"nonce": None}},
    "long ago": {"claims": {"exp": NOW - 3600, "iat": NOW - 7200}},
    "no end": {"claims": {"exp": None}},
    "from the future": {"claims": {"nbf": NOW + 7200}},
    "no subject": {"claims": {"sub": None}},
    "another access token": {"claims": {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"}},
    "a stranger's key": {"key": RSAKey.generate_key(2048, {"kid": "k1"})},
    "a shared secret": {
        "header": {"alg": "HS256"},
        "key": OctKey.import_key(SECRET.ljust(32)),
        "metadata": {"id_token_signing_alg_values_supported": ["HS256", "RS256"]},
    },
    "a kind of key that it never announced": {
        "header": {"alg": "ES256"}, "key": ECKey.generate_key("P-256", {"kid": "k1"}),
    },
    "no token": {"token": (200, {"access_token": "at", "token_type": "Bearer"})},
    "nonsense for a token": {"token": (200, {"access_token": "a", "id_token": "a.b.c"})},
    "an unsigned token": {
        "token": (200, {"access_token": "a", "id_token": "eyJhbGciOiJub25lIn0.e30."}),
    },
    "an error": {"token": (400, {"error": "invalid_grant"})},
    "its own no": {"answer": {"error": "access_denied", "code": ""}},
    "another provider's answer": {"answer": {"iss": "https://evil.test"}},
    "no name in the answer though announced": {
        "metadata": {"authorization_response_iss_parameter_supported": True},
    },
    "no code": {"answer": {"code": ""}},
    "a code that it does not know": {"answer": {"code": "guess"}},
    "no groups, and another person's": {"claims": {"groups": None}, "me": {"sub": "s-2"}},
    "no name": {"claims": {"preferred_username": None}},
    "a name that is none": {"claims": {"preferred_username": "two words"}},
    "a name of the wrong kind": {"claims": {"preferred_username": ["zoe"]}},
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_provider_that_lies_lets_nobody_in(
    liar: Liar, site_at: Callable[..., Site], worklist: Worklist, lie: str
) -> None:
    """401, one row in the audit trail, no account, no session."""
    liar.spoil = LIES[lie]
    with served(site_at(liar.issuer)) as url, Visitor(url) as visitor:
        answer = visitor.get(there(visitor))
        assert answer.status_code == 401, answer.text
        assert 'role="alert"' in answer.text
        assert "triage" not in visitor.cookies
        assert visitor.get("/account").status_code == 303
    assert worklist.accounts.records() == []
    assert audited(worklist) == [("SIGN_IN_REFUSED", "unknown")]


NONSENSE: dict[str, dict[str, Any]] = {
    "another name": {"metadata": {"issuer": "https://evil.test"}},
    "no keys": {"keys": {}},
    "keys that are none": {"keys": {"keys": [{"kty": "RSA"}]}},
    "not JSON": {"keys": b"<html>"},
    "a list": {"keys": []},
    "a failure": {"status": 500},
    "no endpoint": {"metadata": {"token_endpoint": None}},
    "a file for an endpoint": {"metadata": {"token_endpoint": "file:///etc/passwd"}},
}


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_a_provider_that_talks_nonsense_is_told_and_tried_anew(
    liar: Liar, site_at: Callable[..., Site], nonsense: str
) -> None:
    """502 with a sentence, and local accounts go on; once it is mended, it serves at once."""
    liar.spoil = NONSENSE[nonsense]
    with served(site_at(liar.issuer)) as url, Visitor(url) as visitor:
        answer = visitor.get("/sign-in/provider")
        assert answer.status_code == 502
        assert "identity provider" in answer.text
        assert 'name="password"' in answer.text
        liar.spoil = {}
        assert visitor.get(there(visitor)).status_code == 303


def test_a_provider_that_is_off_is_told(site_at: Callable[..., Site]) -> None:
    """502; the service runs on."""
    with served(site_at(f"http://127.0.0.1:{free_port()}")) as url, Visitor(url) as visitor:
        answer = visitor.get("/sign-in/provider")
    assert answer.status_code == 502
    assert "try again" in answer.text


def test_a_provider_may_change_its_keys(
    liar: Liar, site_at: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an unknown key has signed makes us ask for the keys, though not at every forgery."""
    with served(site_at(liar.issuer)) as url, Visitor(url) as visitor:
        assert visitor.get(there(visitor)).status_code == 303
        liar.key = RSAKey.generate_key(2048, {"kid": "k2"})
        liar.spoil = {"header": {"kid": "k2"}}
        assert visitor.get(there(visitor)).status_code == 401
        monkeypatch.setattr("triage.web.provider.KEYS_AGAIN_SECONDS", 0.0)
        assert visitor.get(there(visitor)).status_code == 303


def test_roles_may_stand_deep_in_a_token_or_in_the_user_info(
    liar: Liar, site_at: Callable[..., Site], worklist: Worklist
) -> None:
    """As Keycloak has them; or only where one asks."""
    liar.spoil = {
        "claims": {"groups": None, "realm_access": {"roles": ["it-pacs"]}},
        "me": {"sub": "s-1", "groups": ["house"]},
    }
    with (
        served(site_at(liar.issuer, oidc_role_claim="realm_access.roles")) as url,
        Visitor(url) as visitor,
    ):
        assert visitor.get(there(visitor)).status_code == 303
    assert worklist.accounts.records()[0].roles == ("operator",)
    with served(site_at(liar.issuer)) as url, Visitor(url) as visitor:
        assert visitor.get(there(visitor)).status_code == 303
    assert worklist.accounts.records()[0].roles == ("viewer",)


def test_an_answer_serves_the_browser_that_began_and_only_once(
    liar: Liar, site_at: Callable[..., Site], worklist: Worklist
) -> None:
    """Nobody can be signed in as somebody else by a link (RFC 6749 10.12)."""
    with served(site_at(liar.issuer)) as url, Visitor(url) as visitor, Visitor(url) as victim:
        link = there(visitor)
        assert victim.get(link).status_code == 403
        victim.get("/sign-in/provider")
        assert victim.get(link).status_code == 403
        kept = visitor.cookies["triage-flow"]
        assert visitor.get(link).status_code == 303
        with Visitor(url) as again:
            again.cookies.set("triage-flow", kept)
            assert again.get(link).status_code == 403
        for answer in ("", "?state=", "?state=x&code=y", "?error=access_denied"):
            assert victim.get(f"/sign-in/provider/answer{answer}").status_code == 403
    assert [action for action, _ in audited(worklist)] == ["ACCOUNT_ADDED", "SIGNED_IN"]


def test_without_a_provider_there_is_no_way_to_one(worklist: Worklist, tmp_path: Path) -> None:
    """404, and the page does not offer it."""
    with served(site_of(worklist, tmp_path)) as url, Visitor(url) as visitor:
        assert "/sign-in/provider" not in visitor.get("/sign-in").text
        assert visitor.get("/sign-in/provider").status_code == 404
        assert visitor.get("/sign-in/provider/answer").status_code == 404


def test_the_client_secret_is_never_shown(
    liar: Liar, site_at: Callable[..., Site], capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither in an error, nor in the log, nor among the settings."""
    site = site_at(liar.issuer)
    liar.spoil = {"token": (400, {"error": SECRET, "error_description": SECRET})}
    with served(site) as url, Visitor(url) as visitor:
        visitor.get(there(visitor))
    told = capsys.readouterr()
    assert SECRET not in str(site.config.shown())
    assert "code_verifier" not in told.out + told.err
    assert "code=" not in told.out + told.err


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"oidc_client_secret_file": "absent"}, "TRIAGE_OIDC_CLIENT_SECRET_FILE .*absent"),
        ({"oidc_client_secret_file": "."}, "TRIAGE_OIDC_CLIENT_SECRET_FILE"),
        ({"oidc_ca_file": "absent"}, "TRIAGE_OIDC_CA_FILE .*absent"),
    ],
)
def test_a_missing_secret_stops_the_start_in_one_line(
    site_at: Callable[..., Site], settings: dict[str, str], told: str
) -> None:
    """Before anybody is let in or kept out."""
    with pytest.raises(ServiceError, match=told) as caught:
        build(site_at("http://127.0.0.1:1", **settings))
    assert "\n" not in str(caught.value)


def test_a_provider_without_tls_is_believed_on_this_machine_only(tmp_path: Path) -> None:
    """Else who can read the way could sign in as anybody."""
    from triage.config import Config

    for issuer in ("http://sso.example.org", "ftp://x", "sso.example.org", "https://u:p@host"):
        with pytest.raises(ConfigError, match="TRIAGE_OIDC_ISSUER"):
            Config.read({"TRIAGE_OIDC_ISSUER": issuer}, tmp_path)
    with pytest.raises(ConfigError, match="oidc_client_id and oidc_roles"):
        Config.read({"TRIAGE_OIDC_ISSUER": "https://sso.example.org"}, tmp_path)
    whole = {
        "TRIAGE_OIDC_ISSUER": "https://sso.example.org/realms/house",
        "TRIAGE_OIDC_CLIENT_ID": "x",
        "TRIAGE_OIDC_ROLES": "CN=Radiology=reader, it=operator",
        "TRIAGE_WEB_URL": "https://triage.example.org/",
    }
    config = Config.read(whole, tmp_path)
    assert [str(each) for each in config.oidc_roles] == ["CN=Radiology=reader", "it=operator"]
    assert Provider(config).redirect_uri == "https://triage.example.org/sign-in/provider/answer"
