"""Sessions: signing in, staying signed in, signing out; and how often it may be tried.

A session is known by a random token that only the browser's cookie holds; the database
has its SHA-256. Refused attempts are counted in the database, too, so that neither a
restart nor another node forgets them.
"""

import datetime as dt
import hashlib
import hmac
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from triage.errors import NotSignedIn, SignInRefused, TooManyAttempts
from triage.worklist.accounts import (
    Accounts,
    Identity,
    User,
    forget_attempts,
    kept_name,
    name_hash,
    user_of,
)
from triage.worklist.audit import Action, record
from triage.worklist.journal import now
from triage.worklist.tables import Account, SignInAttempt, SignInFlow, WebSession

WINDOW = dt.timedelta(minutes=15)
"""So long a refused attempt counts."""

ATTEMPTS_OF_ACCOUNT = 10
ATTEMPTS_OF_ADDRESS = 60
"""More: a whole reading room may stand behind one address."""

FLOW_LIMIT = dt.timedelta(minutes=10)
"""So long a sign-in at the identity provider may take."""

SEEN_EVERY = dt.timedelta(seconds=60)
"""How exactly the idle time is kept: not every request writes."""

_ATTEMPT_LOCK = 0x7472_6961_7369
"""PostgreSQL's advisory lock of whoever counts attempts."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a session lasts.

    Attributes
    ----------
    idle, absolute : timedelta
        Without a request; in all.
    """

    idle: dt.timedelta = dt.timedelta(minutes=60)
    absolute: dt.timedelta = dt.timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class Flow:
    """A sign-in on its way through the identity provider."""

    verifier: str
    nonce: str
    destination: str


class Sessions:
    """The sessions of a worklist.

    Parameters
    ----------
    transaction : callable
        The worklist's: gives a session within a transaction.
    accounts : Accounts
    """

    def __init__(
        self,
        transaction: Callable[..., AbstractContextManager[Session]],
        accounts: Accounts,
    ) -> None:
        self._transaction = transaction
        self._accounts = accounts

    def sign_in(self, name: str, password: str, address: str) -> str:
        """Begin a session with a local account; its token.

        Raises
        ------
        SignInRefused
            Name and password do not belong together, or the account is disabled.
        TooManyAttempts
        """
        self._count_attempt(name, address)
        number = self._accounts.verify(name, password)
        if number is None:
            self._refused(name, address, "password")
            raise SignInRefused("the name or the password is not right")
        return self._signed_in(number, name, address, "password")

    def sign_in_vouched(self, identity: Identity, state: str, address: str) -> str:
        """Begin a session for whom the identity provider vouches; its token.

        Parameters
        ----------
        identity : Identity
        state : str
            Of the flow that brought it.
        address : str

        Raises
        ------
        SignInRefused
            The account is disabled here, or its name is another account's.
        """
        number = self._accounts.vouched(identity)
        return self._signed_in(number, _state_name(state), address, "provider")

    def change_password(self, user: User, old: str, new: str, address: str) -> str:
        """Change one's own password; every session ends, and a new one begins: its token.

        Raises
        ------
        SignInRefused
            The old password is not the account's.
        AccountError
            The new one cannot be taken.
        TooManyAttempts
            The old password was guessed at.
        """
        self._count_attempt(user.name, address)
        try:
            number = self._accounts.change_password(user.name, old, new)
        except SignInRefused:
            self._refused(user.name, address, "change of password")
            raise
        return self._signed_in(number, user.name, address, "change of password")

    def user(self, token: str, limits: Limits, *, active: bool = True) -> User:
        """Who has the session of a token.

        Parameters
        ----------
        token : str
        limits : Limits
        active : bool
            Whether this counts as use; else the idle time runs on.

        Raises
        ------
        NotSignedIn
            There is no such session, it has ended, or its account is disabled.
        """
        key, moment = _token_hash(token), now()
        with self._transaction() as session:
            row = session.get(WebSession, key)
            if row is None or _ended(row, moment, limits):
                raise NotSignedIn("sign in first")
            account = session.get_one(Account, row.account_id)
            if account.disabled:
                raise NotSignedIn("sign in first")
            user, seen_at = user_of(account), row.seen_at
        if active and abs(moment - seen_at) >= SEEN_EVERY:
            with self._transaction(write=True) as session:
                row = session.get(WebSession, key)
                if row is not None:
                    row.seen_at = moment
        return user

    def sign_out(self, token: str) -> None:
        """End a session; nothing if it has ended."""
        with self._transaction(write=True) as session:
            row = session.get(WebSession, _token_hash(token))
            if row is not None:
                name = session.get_one(Account, row.account_id).name
                session.delete(row)
                record(session, name, Action.SIGNED_OUT, name)

    def sweep(self, limits: Limits) -> None:
        """Remove what has ended by itself: sessions, flows, old attempts."""
        moment = now()
        with self._transaction(write=True) as session:
            session.execute(
                delete(WebSession).where(
                    (WebSession.seen_at < moment - limits.idle)
                    | (WebSession.created_at < moment - limits.absolute)
                )
            )
            session.execute(delete(SignInFlow).where(SignInFlow.started_at < moment - FLOW_LIMIT))
            session.execute(delete(SignInAttempt).where(SignInAttempt.at < moment - WINDOW))

    # The way through the identity provider

    def begin_flow(self, state: str, flow: Flow, address: str) -> None:
        """Remember a sign-in that goes to the identity provider.

        Raises
        ------
        TooManyAttempts
            Too many from this address did not come back with a session.
        """
        self._count_attempt(_state_name(state), address)
        moment = now()
        with self._transaction(write=True) as session:
            session.execute(delete(SignInFlow).where(SignInFlow.started_at < moment - FLOW_LIMIT))
            session.add(
                SignInFlow(
                    state_hash=_token_hash(state),
                    verifier=flow.verifier,
                    nonce=flow.nonce,
                    destination=flow.destination,
                    started_at=moment,
                )
            )

    def take_flow(self, state: str) -> Flow:
        """The sign-in that comes back from the identity provider; it comes back once.

        Raises
        ------
        SignInRefused
            It is unknown, was taken already, or took too long.
        """
        with self._transaction(write=True) as session:
            query = select(SignInFlow).where(SignInFlow.state_hash == _token_hash(state))
            row = session.scalar(query.with_for_update())
            if row is None:
                raise SignInRefused("this sign-in is not one that was begun here: begin again")
            flow = Flow(row.verifier, row.nonce, row.destination)
            late = abs(now() - row.started_at) > FLOW_LIMIT
            session.delete(row)
        if late:
            raise SignInRefused("this sign-in took too long: begin again")
        return flow

    def refused(self, address: str, why: str) -> None:
        """Note a sign-in that the identity provider's answer did not allow."""
        self._refused("", address, why)

    def _signed_in(self, number: int, name: str, address: str, how: str) -> str:
        with self._transaction(write=True) as session:
            forget_attempts(session, name)
            return _begin(session, number, address, how)

    def _count_attempt(self, name: str, address: str) -> None:
        """Count an attempt before it is made, so that many at once are no way around."""
        moment, key = now(), name_hash(name)
        with self._transaction(write=True) as session:
            if session.get_bind().dialect.name == "postgresql":
                session.execute(select(func.pg_advisory_xact_lock(_ATTEMPT_LOCK)))
            session.execute(delete(SignInAttempt).where(SignInAttempt.at < moment - WINDOW))
            for column, value, most in (
                (SignInAttempt.account_hash, key, ATTEMPTS_OF_ACCOUNT),
                (SignInAttempt.address, address[:64], ATTEMPTS_OF_ADDRESS),
            ):
                query = select(func.count(), func.min(SignInAttempt.at)).where(
                    column == value,
                    # What a clock that went backwards has left in the future counts not.
                    SignInAttempt.at <= moment + SEEN_EVERY,
                )
                count, oldest = session.execute(query).one()
                if count >= most:
                    wait = max(1, int((oldest + WINDOW - moment).total_seconds()) + 1)
                    raise TooManyAttempts(
                        f"too many refused sign-ins: try again in {-(-wait // 60)} minutes", wait
                    )
            session.add(SignInAttempt(at=moment, account_hash=key, address=address[:64]))

    def _refused(self, name: str, address: str, why: str) -> None:
        with self._transaction(write=True) as session:
            # A name that is nobody's may be a password in the wrong field.
            query = select(Account.name).where(Account.name == kept_name(name))
            known = session.scalar(query) or ""
            detail = {"address": address, "why": why}
            record(session, known or "unknown", Action.SIGN_IN_REFUSED, known, detail)


def csrf_of(token: str) -> str:
    """The token that proves that a request comes from our own page (OWASP: HMAC-based)."""
    return hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()


def new_token() -> str:
    """256 random bits, for a cookie or a state."""
    return secrets.token_urlsafe(32)


def _begin(session: Session, account_id: int, address: str, how: str) -> str:
    token, moment = new_token(), now()
    session.add(
        WebSession(
            token_hash=_token_hash(token),
            account_id=account_id,
            created_at=moment,
            seen_at=moment,
        )
    )
    name = session.get_one(Account, account_id).name
    session.flush()
    record(session, name, Action.SIGNED_IN, name, {"address": address, "how": how})
    return token


def _ended(row: WebSession, moment: dt.datetime, limits: Limits) -> bool:
    # A clock that went backwards by more than a session lasts prolongs none.
    return moment - row.seen_at > limits.idle or abs(moment - row.created_at) > limits.absolute


def _token_hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _state_name(state: str) -> str:
    """What stands for the name in the count of attempts, which no name can be."""
    return f"state {state}"
