"""Signing in at an identity provider: OpenID Connect, authorization code flow with PKCE.

After OpenID Connect Core 1.0 section 3.1, Discovery 1.0, PKCE (RFC 7636) and what RFC 9700
asks of clients: exact issuer, state bound to the browser, a nonce, asymmetric signatures
only, and the answer's own ``iss`` (RFC 9207).
"""

import json
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus, urlencode, urlsplit

from triage.config import Config
from triage.errors import ProviderFailed, ServiceError, SignInRefused
from triage.worklist.accounts import Identity, Role
from triage.worklist.sessions import Flow, new_token

if TYPE_CHECKING:
    from joserfc.jwk import KeySet
    from urllib3 import PoolManager

ANSWER = "/sign-in/provider/answer"
"""Where the provider sends the browser back to: the redirect URI to register there."""

SCOPE = "openid profile email"

TIMEOUT_SECONDS = 10.0
LEEWAY_SECONDS = 60
"""So far two clocks may be apart."""

KNOWN_SECONDS = 3_600.0
"""So long what the provider has published is believed without asking again."""

KEYS_AGAIN_SECONDS = 60.0
"""Not more often its keys are fetched because of a token that none of them has signed."""

LONGEST_ANSWER = 1_000_000

ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
    "Ed25519",
)  # fmt: skip
"""Signatures that only the provider can make: no ``none``, no shared secret."""


@dataclass(frozen=True, slots=True)
class Departure:
    """A browser on its way to the provider.

    Attributes
    ----------
    url : str
        Where to send it.
    state : str
        What it must bring back; its cookie holds it, too.
    flow : Flow
        What to remember until then.
    """

    url: str
    state: str
    flow: Flow


class Provider:
    """The identity provider of an installation.

    Parameters
    ----------
    config : Config
        With ``oidc_issuer``.

    Raises
    ------
    ServiceError
        The client secret or the CA file cannot be read.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._secret = _secret(config)
        self._http = _http(config)
        self._lock = threading.Lock()
        self._metadata: dict[str, Any] = {}
        self._keys: KeySet | None = None
        self._fetched_at = -KNOWN_SECONDS

    @property
    def redirect_uri(self) -> str:
        """What is registered with the provider."""
        return self._config.web_origin + ANSWER

    def depart(self, destination: str) -> Departure:
        """Begin a sign-in.

        Raises
        ------
        ProviderFailed
            The provider cannot be asked.
        """
        from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
        from authlib.oauth2.rfc7636 import create_s256_code_challenge

        metadata, _ = self._published()
        state, flow = new_token(), Flow(new_token(), new_token(), destination)
        url = prepare_grant_uri(
            metadata["authorization_endpoint"],
            client_id=self._config.oidc_client_id,
            response_type="code",
            redirect_uri=self.redirect_uri,
            scope=SCOPE,
            state=state,
            nonce=flow.nonce,
            code_challenge=create_s256_code_challenge(flow.verifier),
            code_challenge_method="S256",
        )
        return Departure(url, state, flow)

    def arrive(self, answer: Mapping[str, str], flow: Flow) -> Identity:
        """Who comes back.

        Parameters
        ----------
        answer : mapping of str to str
            The query of the request that the provider has sent the browser with. Its state
            was compared already.
        flow : Flow

        Raises
        ------
        SignInRefused
            The provider says no, or what it says is not for us.
        ProviderFailed
            It cannot be asked.
        """
        if "error" in answer:
            raise SignInRefused(f"the identity provider says no ({_printable(answer['error'])})")
        metadata, keys = self._published()
        named = answer.get("iss")
        if named is None and metadata.get("authorization_response_iss_parameter_supported"):
            raise SignInRefused("the answer does not name its identity provider")
        if named is not None and named != self._config.oidc_issuer:
            raise SignInRefused("the answer is another identity provider's")
        token = self._redeem(metadata, answer.get("code", ""), flow)
        claims = self._claims(token, flow, metadata, keys)
        return self._identity(claims, token, metadata)

    def _redeem(self, metadata: Mapping[str, Any], code: str, flow: Flow) -> dict[str, Any]:
        """The tokens for a code (OpenID Connect Core 3.1.3.1)."""
        if not code:
            raise SignInRefused("the identity provider's answer has no code")
        client_id = self._config.oidc_client_id
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": flow.verifier,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        known = metadata.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if not self._secret:
            fields["client_id"] = client_id
        elif "client_secret_basic" in known:
            # RFC 6749 2.3.1: each of the two is encoded like a form's field.
            pair = f"{quote_plus(client_id)}:{quote_plus(self._secret)}".encode()
            headers["Authorization"] = f"Basic {b64encode(pair).decode()}"
        else:
            fields |= {"client_id": client_id, "client_secret": self._secret}
        status, token = self._ask(
            "POST", metadata["token_endpoint"], headers, urlencode(fields).encode()
        )
        if status != 200:
            why = _printable(str(token.get("error", status)))
            raise SignInRefused(f"the identity provider does not take its own code ({why})")
        if not isinstance(token.get("id_token"), str):
            raise SignInRefused("the identity provider gives no ID token: it must know `openid`")
        return token

    def _claims(
        self,
        token: Mapping[str, Any],
        flow: Flow,
        metadata: Mapping[str, Any],
        keys: "KeySet",
    ) -> dict[str, Any]:
        """The ID token's claims, believed (OpenID Connect Core 3.1.3.7)."""
        from authlib.oidc.core.claims import CodeIDToken
        from joserfc import jwt
        from joserfc.errors import JoseError

        offered = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
        allowed = [algorithm for algorithm in ALGORITHMS if algorithm in offered]
        wanted = {
            "iss": {"essential": True, "value": self._config.oidc_issuer},
            "aud": {"essential": True, "value": self._config.oidc_client_id},
            "sub": {"essential": True},
        }
        expected = {
            "nonce": flow.nonce,
            "client_id": self._config.oidc_client_id,
            "access_token": token.get("access_token"),
        }
        try:
            try:
                decoded = jwt.decode(token["id_token"], keys, algorithms=allowed)
            except (JoseError, ValueError):
                # Its keys may be new ones.
                decoded = jwt.decode(token["id_token"], self._new_keys(), algorithms=allowed)
            claims = CodeIDToken(decoded.claims, decoded.header, wanted, expected)
            claims.validate(leeway=LEEWAY_SECONDS)
        except (JoseError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise SignInRefused(
                f"the identity provider's ID token is not for us ({_reason(error)})"
            ) from error
        return dict(decoded.claims)

    def _identity(
        self, claims: Mapping[str, Any], token: Mapping[str, Any], metadata: Mapping[str, Any]
    ) -> Identity:
        config = self._config
        told = dict(claims)
        wanted = (config.oidc_name_claim, config.oidc_role_claim)
        if any(_claim(told, name) is None for name in wanted) and "userinfo_endpoint" in metadata:
            told = {**self._user_info(token, metadata, str(claims["sub"])), **told}
        name = _claim(told, config.oidc_name_claim)
        if not isinstance(name, str) or not name.strip():
            raise SignInRefused(
                f"the identity provider does not tell your name ({config.oidc_name_claim}): ask "
                "the operator"
            )
        groups = _claim(told, config.oidc_role_claim)
        listed = {groups} if isinstance(groups, str) else set()
        if isinstance(groups, list):
            listed = {group for group in groups if isinstance(group, str)}
        roles = frozenset(Role(each.role) for each in config.oidc_roles if each.group in listed)
        if not roles:
            raise SignInRefused("none of your groups has a role here: ask the operator")
        shown = told.get("name")
        display_name = shown if isinstance(shown, str) and shown.strip() else name
        return Identity(
            config.oidc_issuer,
            str(claims["sub"])[:256],
            name,
            _printable(display_name.strip(), 128),
            roles,
        )

    def _user_info(
        self, token: Mapping[str, Any], metadata: Mapping[str, Any], subject: str
    ) -> dict[str, Any]:
        """What the provider tells only on asking (OpenID Connect Core 5.3)."""
        found = self._get(
            metadata["userinfo_endpoint"],
            {"Authorization": f"Bearer {token.get('access_token', '')}"},
        )
        if found.get("sub") != subject:
            raise SignInRefused("the identity provider's two answers are not about the same person")
        return found

    def _published(self) -> "tuple[dict[str, Any], KeySet]":
        """The provider's metadata and keys."""
        with self._lock:
            if self._keys is not None and time.monotonic() - self._fetched_at < KNOWN_SECONDS:
                return self._metadata, self._keys
            issuer = self._config.oidc_issuer
            metadata = self._get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
            if metadata.get("issuer") != issuer:
                raise ProviderFailed(
                    "the identity provider calls itself "
                    f"{_printable(str(metadata.get('issuer')))}: set TRIAGE_OIDC_ISSUER to that, "
                    "letter by letter"
                )
            for endpoint in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                _require_safe(metadata, endpoint, issuer)
            if "userinfo_endpoint" in metadata:
                _require_safe(metadata, "userinfo_endpoint", issuer)
            self._keys = self._fetch_keys(metadata)
            self._metadata, self._fetched_at = metadata, time.monotonic()
            return self._metadata, self._keys

    def _new_keys(self) -> "KeySet":
        """The provider's keys, fetched anew, but not at every forged token."""
        with self._lock:
            if self._keys is None or time.monotonic() - self._fetched_at >= KEYS_AGAIN_SECONDS:
                self._keys = self._fetch_keys(self._metadata)
                self._fetched_at = time.monotonic()
            return self._keys

    def _fetch_keys(self, metadata: Mapping[str, Any]) -> "KeySet":
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        try:
            return KeySet.import_key_set(self._get(metadata["jwks_uri"]))  # type: ignore[arg-type]
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise _failed("publishes keys that cannot be read", error) from error

    def _get(self, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """A JSON object that the provider publishes."""
        status, found = self._ask("GET", url, headers or {})
        if status != 200:
            raise ProviderFailed(
                f"the identity provider answers {status} at {urlsplit(url).path}: see its log"
            )
        return found

    def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of the provider's answer; it leads nowhere else."""
        from urllib3.exceptions import HTTPError

        try:
            response = self._http.request(
                method,
                url,
                body=body,
                headers={"Accept": "application/json", **headers},
                redirect=False,
                preload_content=False,
            )
            try:
                content = response.read(LONGEST_ANSWER, decode_content=True)
            finally:
                response.release_conn()
                response.close()
            found = json.loads(content)
        except (HTTPError, OSError, ValueError) as error:
            raise _failed("cannot be asked", error) from error
        if not isinstance(found, dict):
            raise ProviderFailed("the identity provider's answer is not a JSON object")
        return response.status, found


def _secret(config: Config) -> str:
    file = config.oidc_client_secret_file
    if file is None:
        return ""
    try:
        found = file.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise ServiceError(
            f"TRIAGE_OIDC_CLIENT_SECRET_FILE {file} cannot be read ({why}): put the client secret "
            "there, for this user only"
        ) from error
    if not found:
        raise ServiceError(f"TRIAGE_OIDC_CLIENT_SECRET_FILE {file} is empty: put the secret there")
    return found


def _http(config: Config) -> "PoolManager":
    """Connections to the provider, which trust whom the system trusts, or a file."""
    from urllib3 import PoolManager, Timeout

    file = config.oidc_ca_file
    try:
        context = ssl.create_default_context(cafile=None if file is None else str(file))
    except OSError as error:  # an SSLError is an OSError
        raise ServiceError(
            f"TRIAGE_OIDC_CA_FILE {file} cannot be used ({error.strerror or error}): give the PEM "
            "certificate of who signs the provider's"
        ) from error
    return PoolManager(
        ssl_context=context, timeout=Timeout(total=TIMEOUT_SECONDS), retries=False, maxsize=4
    )


def _require_safe(metadata: Mapping[str, Any], endpoint: str, issuer: str) -> None:
    url = metadata.get(endpoint)
    scheme = urlsplit(url).scheme if isinstance(url, str) else ""
    # Without TLS only where the issuer itself is this machine.
    if scheme != "https" and not (scheme == "http" and issuer.startswith("http://")):
        raise ProviderFailed(f"the identity provider's {endpoint} is not an https URL")


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name; else by a path of names with dots between them."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for step in name.split("."):
        if not isinstance(found, Mapping) or step not in found:
            return None
        found = found[step]
    return found


def _failed(what: str, error: Exception) -> ProviderFailed:
    return ProviderFailed(
        f"the identity provider {what} ({type(error).__name__}): try again, and if it stays so, "
        "tell the operator"
    )


def _reason(error: Exception) -> str:
    """What kind of thing is wrong with a token; nothing of the token."""
    kind = getattr(error, "error", "") or type(error).__name__
    return _printable(f"{kind} {getattr(error, 'claim', '')}".strip())


def _printable(text: str, longest: int = 64) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:longest])
