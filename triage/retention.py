"""Removing kept objects and arrays that are past the site's policy; by default nothing is."""

import datetime as dt
from dataclasses import dataclass

from triage.arrays import Pictures
from triage.errors import DataError
from triage.spool import Spool
from triage.worklist import Worklist
from triage.worklist.retention import Spent


@dataclass(frozen=True, slots=True)
class Policy:
    """How long a read exam is kept for training.

    Attributes
    ----------
    object_days, array_days : int
        Days after its last reading that its object, and its array, are kept; 0 is for ever.
    """

    object_days: int
    array_days: int


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed, or would be.

    Attributes
    ----------
    objects, object_bytes : int
    arrays : int
    kept : int
        Objects past their time whose array cannot be made, and which therefore stay.
    """

    objects: int
    object_bytes: int
    arrays: int
    kept: int


class Housekeeping:
    """Removes what a policy no longer keeps.

    An object goes only if its exam was read, is not disputed, all its results are delivered
    and no console has committed it to our storage. Its array is made before. Arrays of
    withdrawn patients always go.

    Parameters
    ----------
    worklist : Worklist
    spool : Spool
    pictures : Pictures
    policy : Policy
    actor : str
        For journal and audit trail.
    """

    def __init__(
        self, worklist: Worklist, spool: Spool, pictures: Pictures, policy: Policy, actor: str
    ) -> None:
        self._worklist, self._spool, self._pictures = worklist, spool, pictures
        self._policy, self._actor = policy, actor

    def run(self, *, dry_run: bool) -> Removed:
        """Remove it, or only count.

        Raises
        ------
        TriageError
            The database cannot be used, or a file not removed.
        """
        now = dt.datetime.now(dt.UTC)
        withdrawn = self._worklist.learning.withdrawn_digests()
        objects = size = arrays = kept = 0
        if self._policy.object_days:
            before = now - dt.timedelta(days=self._policy.object_days)
            for batch in self._worklist.retention.spent(before):
                sizes = {each.digest: self._spool.size(each.digest) for each in batch}
                there = [each for each in batch if sizes[each.digest] is not None]
                ready = there
                if not dry_run:
                    ready = [each for each in there if each.digest in withdrawn or self._made(each)]
                    kept += len(there) - len(ready)
                    ready = self._worklist.retention.release(ready, before, self._actor)
                for each in ready:
                    objects += 1
                    size += sizes[each.digest] or 0
                    if not dry_run:
                        self._spool.remove(each.digest)
        for digest in sorted(withdrawn | self._outlived(now)):
            if self._pictures.has(digest):
                arrays += 1
                if not dry_run:
                    self._pictures.forget(digest)
        if not dry_run and (objects or arrays):
            self._worklist.retention.told(self._actor, {"objects": objects, "arrays": arrays})
        return Removed(objects, size, arrays, kept)

    def _outlived(self, now: dt.datetime) -> set[str]:
        """Objects whose arrays are past their time."""
        if not self._policy.array_days:
            return set()
        before = now - dt.timedelta(days=self._policy.array_days)
        batches = self._worklist.retention.spent(before)
        return {each.digest for batch in batches for each in batch}

    def _made(self, exam: Spent) -> bool:
        """Whether training keeps the exam's array; made now if it was not yet."""
        try:
            self._pictures.array(exam.digest)
        except DataError:
            return False
        return True
