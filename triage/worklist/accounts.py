"""Accounts: who may sign in, as what."""

from dataclasses import dataclass
from enum import StrEnum


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
    """

    name: str
    display_name: str
    roles: frozenset[Role]
    must_change: bool = False

    def may(self, role: Role) -> bool:
        """Whether the account has a role, or one that implies it."""
        return role in self.roles or (role is Role.VIEWER and bool(self.roles))
