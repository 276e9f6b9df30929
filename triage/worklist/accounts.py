"""Accounts: who may sign in, as what, and with which password.

Passwords are kept as Argon2id hashes (RFC 9106). An account that an identity provider
vouches for has none here. No account is ever removed: its name stands under readings.
"""

import datetime as dt
import hashlib
import secrets
import threading
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from triage.errors import AccountError, SignInRefused
from triage.worklist.audit import Action, record
from triage.worklist.journal import now
from triage.worklist.tables import Account, SignInAttempt, WebSession

if TYPE_CHECKING:
    from argon2 import PasswordHasher

FIRST_OPERATOR = "operator"
"""The account that the first start makes."""

SHORTEST_PASSWORD = 12
LONGEST_PASSWORD = 256

_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
"""Of one-time passwords: none is taken for another."""

_HASHED_AT_ONCE = 2
"""Each hash takes 64 MB for a moment: a crowd of sign-ins must not take all memory."""


class Role(StrEnum):
    """What an account may do."""

    VIEWER = "viewer"
    """See the list, the exams and their pictures."""

    READER = "reader"
    """Say what a radiograph shows: a reading counts for training. Sees all that a viewer sees."""

    OPERATOR = "operator"
    """Look after the service and its accounts. Sees all that a viewer sees, reads nothing."""


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who has signed in.

    Attributes
    ----------
    name : str
        The account's; what readings and audit rows keep.
    display_name : str
    roles : frozenset of Role
        As given; what they imply is asked by :meth:`may`.
    must_change : bool
        Whether the password is a one-time password: until it is changed, nothing else is shown.
    local : bool
        Whether the password is kept here, and not by an identity provider.
    """

    name: str
    display_name: str
    roles: frozenset[Role]
    must_change: bool = False
    local: bool = True

    def may(self, role: Role) -> bool:
        """Whether the account has a role, or one that implies it."""
        return role in self.roles or (role is Role.VIEWER and bool(self.roles))


@dataclass(frozen=True, slots=True)
class AccountRecord:
    """An account as an operator sees it.

    Attributes
    ----------
    name, display_name : str
    roles : tuple of str
    kind : str
        ``local``, or ``provider`` where an identity provider signs in.
    must_change : bool
        Its one-time password is not changed yet.
    disabled : bool
    created_at : datetime
        Aware, UTC.
    """

    name: str
    display_name: str
    roles: tuple[str, ...]
    kind: str
    must_change: bool
    disabled: bool
    created_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom an identity provider vouches for (OpenID Connect Core 1.0, section 2).

    Attributes
    ----------
    issuer, subject : str
        ``iss`` and ``sub``: together they never change and never mean somebody else.
    name, display_name : str
    roles : frozenset of Role
        Not empty.
    """

    issuer: str
    subject: str
    name: str
    display_name: str
    roles: frozenset[Role]


class Accounts:
    """The accounts of a worklist.

    Parameters
    ----------
    transaction : callable
        The worklist's: gives a session within a transaction.
    """

    def __init__(self, transaction: Callable[..., AbstractContextManager[Session]]) -> None:
        self._transaction = transaction
        self._hashing = threading.BoundedSemaphore(_HASHED_AT_ONCE)

    def records(self) -> list[AccountRecord]:
        """Every account, by name."""
        with self._transaction() as session:
            return [_shown(row) for row in session.scalars(select(Account).order_by(Account.name))]

    def first_operator(self) -> str | None:
        """Make the first account; its one-time password, or None if there are accounts."""
        with self._transaction() as session:
            if session.scalar(select(func.count()).select_from(Account)):
                return None
        try:
            return self.add(FIRST_OPERATOR, "Operator", {Role.OPERATOR}, "first start")
        except AccountError:  # another node was first
            return None

    def add(self, name: str, display_name: str, roles: Iterable[Role], actor: str) -> str:
        """Make a local account; its one-time password.

        Raises
        ------
        AccountError
            The name is taken or not usable, or there is no role.
        """
        name, display_name = valid_name(name), display_name.strip() or name
        if len(display_name) > 128 or not display_name.isprintable():
            raise AccountError("a display name has 1 to 128 printable characters")
        given = _given(roles)
        password = _one_time_password()
        row = Account(
            name=name,
            display_name=display_name,
            roles=given,
            password_hash=self._hash(password),
            must_change=True,
            disabled=False,
            created_at=now(),
        )
        try:
            with self._transaction(write=True) as session:
                session.add(row)
                session.flush()
                record(session, actor, Action.ACCOUNT_ADDED, name, {"roles": given})
        except IntegrityError:
            raise AccountError(
                f"there is an account {name!r} already: `triage users list` shows it"
            ) from None
        return password

    def set_roles(self, name: str, roles: Iterable[Role], actor: str) -> None:
        """Give an account these roles and no others; at once, in its open sessions, too.

        Raises
        ------
        AccountError
            There is no such account, or its roles are the identity provider's affair.
        """
        given = _given(roles)
        with self._transaction(write=True) as session:
            account = _find(session, name)
            if account.issuer is not None:
                raise AccountError(
                    f"the roles of {account.name!r} come from the identity provider: change them "
                    "there"
                )
            if Role.OPERATOR not in given:
                _require_another_operator(session, account)
            account.roles = given
            record(session, actor, Action.ACCOUNT_ROLES, account.name, {"roles": given})

    def reset(self, name: str, actor: str) -> str:
        """Give a local account a one-time password and end its sessions; the password.

        Refused sign-ins of the account are forgotten.

        Raises
        ------
        AccountError
            There is no such account, or it has no password here.
        """
        password = _one_time_password()
        hashed = self._hash(password)
        with self._transaction(write=True) as session:
            account = _find(session, name)
            if account.issuer is not None:
                raise AccountError(
                    f"{account.name!r} signs in at the identity provider and has no password here"
                )
            account.password_hash, account.must_change = hashed, True
            _end_sessions(session, account)
            forget_attempts(session, account.name)
            record(session, actor, Action.ACCOUNT_RESET, account.name)
        return password

    def disable(self, name: str, actor: str) -> None:
        """Let an account sign in no longer, and end its sessions.

        Raises
        ------
        AccountError
            There is no such account, or no other operator would be left.
        """
        with self._transaction(write=True) as session:
            account = _find(session, name)
            _require_another_operator(session, account)
            account.disabled = True
            _end_sessions(session, account)
            record(session, actor, Action.ACCOUNT_DISABLED, account.name)

    def enable(self, name: str, actor: str) -> None:
        """Let a disabled account sign in again.

        Raises
        ------
        AccountError
            There is no such account.
        """
        with self._transaction(write=True) as session:
            account = _find(session, name)
            account.disabled = False
            record(session, actor, Action.ACCOUNT_ENABLED, account.name)

    def change_password(self, name: str, old: str, new: str) -> int:
        """Change one's own password and end every session of the account; its number.

        Raises
        ------
        SignInRefused
            The old password is not the account's.
        AccountError
            The new one cannot be taken.
        """
        if self.verify(name, old) is None:
            raise SignInRefused("the present password is another")
        _require_strong(new, name)
        if _plain(new) == _plain(old):
            raise AccountError("the new password is the old one: choose another")
        hashed = self._hash(new)
        with self._transaction(write=True) as session:
            account = _find(session, name)
            account.password_hash, account.must_change = hashed, False
            _end_sessions(session, account)
            record(session, account.name, Action.PASSWORD_CHANGED, account.name)
            return account.id

    def verify(self, name: str, password: str) -> int | None:
        """The number of the account that a name and a password belong to.

        It takes as long for a name that is nobody's as for a wrong password.
        """
        from argon2.exceptions import InvalidHashError, VerificationError

        if len(password) > LONGEST_PASSWORD:
            return None
        with self._transaction() as session:
            account = session.scalar(select(Account).where(Account.name == kept_name(name)))
            known = None if account is None else (account.id, account.password_hash)
            usable = account is not None and not account.disabled
        if known is None or known[1] is None:
            self._hash(password)
            return None
        try:
            with self._hashing:
                _hasher().verify(known[1], _plain(password))
        except (VerificationError, InvalidHashError):
            return None
        return known[0] if usable else None

    def vouched(self, identity: Identity) -> int:
        """The number of the account of whom an identity provider vouches for; made if new.

        Raises
        ------
        SignInRefused
            The account is disabled, or its name is another account's.
        """
        wanted = _given(identity.roles)
        try:
            with self._transaction(write=True) as session:
                account = session.scalar(
                    select(Account).where(
                        Account.issuer == identity.issuer,
                        Account.issuer_subject == identity.subject,
                    )
                )
                if account is None:
                    account = Account(
                        name=valid_name(identity.name),
                        display_name=identity.display_name,
                        roles=wanted,
                        password_hash=None,
                        must_change=False,
                        issuer=identity.issuer,
                        issuer_subject=identity.subject,
                        disabled=False,
                        created_at=now(),
                    )
                    session.add(account)
                    session.flush()
                    detail = {"roles": wanted, "issuer": identity.issuer}
                    record(session, account.name, Action.ACCOUNT_ADDED, account.name, detail)
                elif account.disabled:
                    raise SignInRefused("this account is disabled here: ask the operator")
                elif sorted(account.roles) != wanted:
                    account.roles = wanted
                    detail = {"roles": wanted, "issuer": identity.issuer}
                    record(session, account.name, Action.ACCOUNT_ROLES, account.name, detail)
                account.display_name = identity.display_name
                return account.id
        except AccountError as error:
            raise SignInRefused(f"the identity provider's name for you: {error}") from None
        except IntegrityError:
            raise SignInRefused(
                "another account here has the name that the identity provider gives you: ask the "
                "operator"
            ) from None

    def _hash(self, password: str) -> str:
        with self._hashing:
            return _hasher().hash(_plain(password))


def valid_name(name: str) -> str:
    """An account's name as it is kept: 1 to 64 characters, lower case, no spaces.

    Raises
    ------
    AccountError
        It is not usable.
    """
    kept = kept_name(name)
    if not kept or any(map(str.isspace, kept)):
        raise AccountError("an account's name has 1 to 64 characters and no spaces")
    return kept


def kept_name(text: str) -> str:
    """What an account with this name would be kept under; empty if there can be none."""
    folded = unicodedata.normalize("NFKC", text.strip()).casefold()
    return folded if len(folded) <= 64 and folded.isprintable() else ""


def name_hash(name: str) -> str:
    """What stands for a name among refused attempts: it may be a password in the wrong field."""
    return hashlib.sha256((kept_name(name) or name).encode("utf-8", "surrogatepass")).hexdigest()


def forget_attempts(session: Session, name: str) -> None:
    """Wipe the slate of a name."""
    session.execute(delete(SignInAttempt).where(SignInAttempt.account_hash == name_hash(name)))


def user_of(account: Account) -> User:
    """The user that an account's row tells of."""
    return User(
        account.name,
        account.display_name,
        frozenset(map(Role, account.roles)),
        account.must_change,
        account.issuer is None,
    )


def _hasher() -> "PasswordHasher":
    from argon2 import PasswordHasher

    return PasswordHasher()  # RFC 9106, section 4, second recommendation: 64 MiB, 3 passes


def _plain(password: str) -> str:
    """One form for what keyboards write in two (NIST SP 800-63B, 5.1.1.2)."""
    return unicodedata.normalize("NFKC", password)


def _require_strong(password: str, name: str) -> None:
    """NIST SP 800-63B: length matters, composition rules do not."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise AccountError(
            f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters: a few words "
            "make a good one"
        )
    if name.casefold() in password.casefold() or len(set(password)) < 5:
        raise AccountError("this password is too easy to guess: a few words make a good one")


def _one_time_password() -> str:
    """Four groups of four letters and digits: 79 bits."""
    return "-".join("".join(secrets.choice(_LETTERS) for _ in range(4)) for _ in range(4))


def _given(roles: Iterable[Role]) -> list[str]:
    given = sorted({Role(role).value for role in roles})
    if not given:
        raise AccountError("an account has at least one role: viewer, reader or operator")
    return given


def _find(session: Session, name: str) -> Account:
    query = select(Account).where(Account.name == kept_name(name)).with_for_update()
    account = session.scalar(query)
    if account is None:
        raise AccountError(f"there is no account {name[:64]!r}: `triage users list` shows them")
    return account


def _require_another_operator(session: Session, account: Account) -> None:
    """Else nobody could look after the service on the page."""
    if account.disabled or Role.OPERATOR not in account.roles:
        return
    others = session.scalars(
        select(Account).where(Account.disabled.is_(False), Account.id != account.id)
    )
    if not any(Role.OPERATOR in other.roles for other in others):
        raise AccountError(
            f"{account.name!r} is the only operator: give the role to another account first"
        )


def _end_sessions(session: Session, account: Account) -> None:
    session.execute(delete(WebSession).where(WebSession.account_id == account.id))


def _shown(row: Account) -> AccountRecord:
    return AccountRecord(
        name=row.name,
        display_name=row.display_name,
        roles=tuple(sorted(row.roles)),
        kind="local" if row.issuer is None else "provider",
        must_change=row.must_change,
        disabled=row.disabled,
        created_at=row.created_at,
    )
