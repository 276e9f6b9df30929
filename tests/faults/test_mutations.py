"""A test of the tests: each promise is broken on purpose, and the suite must see it."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.conftest import FULL, Tally
from tests.faults.variants import Variant, variant


@dataclass(frozen=True)
class Broken:
    """A promise, how it is broken, and the test that must fail, with a word of its failure."""

    promise: str
    change: Variant
    test: str
    word: str
    short: bool = False
    """Whether the short form has it, too."""


POWER = "test_power_loss.py"
NETWORK = "test_network.py"
BROKEN = [
    Broken(
        "a file is on the disk before Success",
        Variant("spool.py", "                os.fsync(file.fileno())\n", ""),
        POWER, "lost:", short=True,
    ),
    Broken(
        "a file's name is on the disk before Success",
        Variant(
            "spool.py",
            "            Path(temporary).replace(target)\n            sync(target.parent)\n",
            "            Path(temporary).replace(target)\n",
        ),
        POWER, "lost:",
    ),
    Broken(
        "the home's own name is on the disk before Success",
        Variant("app.py", "keep_folder(config.home)", "config.home.mkdir(0o700, True, True)"),
        POWER, "lost:",
    ),
    Broken(
        "a row is on the disk before Success",
        Variant("worklist/schema.py", "PRAGMA synchronous = FULL", "PRAGMA synchronous = NORMAL"),
        POWER, "lost:",
    ),
    Broken(
        "a file comes before its row",
        Variant(
            "scp.py",
            "            self._spool.put(digest, content)\n            arrival = Arrival(",
            "            later = lambda: self._spool.put(digest, content)\n"
            "            arrival = Arrival(",
        ),
        POWER, "traces:",
    ),
    Broken(
        "a UID has one row",
        Variant(
            "worklist/__init__.py",
            "        except IntegrityError:\n            return False\n        return True\n",
            "        except IntegrityError:\n            raise\n        return True\n",
        ),
        NETWORK, "got no Success",
    ),
    Broken(
        "what was cut leaves no trace",
        Variant("scp.py", "        why = cut_short(event)\n", "        why = None\n"),
        "test_hostile.py", "",
    ),
    Broken(
        "what was half received is swept",
        Variant("spool.py", "                leftover.unlink()\n", "                pass\n"),
        POWER, "traces: incoming",
    ),
    Broken(
        "each image ends scored or with a reason",
        Variant("app.py", 'with _name(config, "worker") as name:', "name = str(os.getpid())\n    if name:"),
        "test_kills.py", "unsettled:",
    ),
    Broken(
        "each result is delivered",
        Variant(
            "worklist/__init__.py",
            "enqueue(session, self._routes, (ResultKind.FINDING, ResultKind.HEAT_MAP), record)",
            "enqueue(session, self._routes, (ResultKind.FINDING,), record)",
        ),
        "test_kills.py", "undelivered:",
    ),
    Broken(
        "each result is delivered under one identifier",
        Variant(
            "delivery.py",
            "        self._deliveries.built(claim, result.uid, digest)\n",
            "",
        ),
        "test_kills.py", "duplicated:",
    ),
    Broken(
        "a clock that is set back puts nothing off",
        Variant("worklist/__init__.py", "claimed_until > now + FARTHEST", "claimed_until > now + 999 * FARTHEST"),
        "test_clock.py", "assert None is not None", short=True,
    ),
    Broken(
        "file handles are given back",
        Variant(
            "transport.py",
            "            connection.close()\n",
            "            globals().setdefault('leak', []).append(connection)\n",
        ),
        "test_soak.py", "handles for each association",
    ),
    Broken(
        "memory is given back",
        Variant(
            "scp.py",
            "        request = event.assoc.requestor.primitive\n",
            "        request = event.assoc.requestor.primitive\n",
        ),
        "test_soak.py", "bytes for each association",
    ),
    Broken(
        "a stalled console gives its place back",
        Variant("transport.py", "            connection.shutdown(socket.SHUT_RDWR)\n", "            pass\n"),
        NETWORK, "",
    ),
]  # fmt: skip
