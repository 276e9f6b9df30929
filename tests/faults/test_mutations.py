"""A test of the tests: each promise is broken on purpose, and the suite must see it."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.tally import FULL, Tally
from tests.faults.variants import Variant, variant


@dataclass(frozen=True)
class Broken:
    """A promise, how it is broken, and the test that must fail, with words of its failure."""

    promise: str
    change: Variant
    test: str
    word: str
    also: Variant | None = None
    short: bool = False
    """Whether the short form has it, too."""
    chosen: tuple[str, ...] = ()
    """Options of pytest that choose what runs."""


POWER = "test_power_loss.py"
NETWORK = "test_network.py"
BROKEN = [
    Broken(
        "a file is on the disk before Success",
        Variant("spool.py", "            os.fsync(self._descriptor)\n", ""),
        POWER,
        "lost:|traces:",
        short=True,
    ),
    Broken(
        "a file's name is on the disk before Success",
        Variant("store.py", "        sync(target.parent)\n", ""),
        POWER,
        "lost:|traces:",
    ),
    Broken(
        "the folders above a file are on the disk before Success",
        Variant("durable.py", "    sync(folder.parent)\n", "    pass\n"),
        POWER,
        "lost:|traces:",
    ),
    Broken(
        "a row is on the disk before Success",
        Variant("worklist/schema.py", "PRAGMA synchronous = FULL", "PRAGMA synchronous = NORMAL"),
        POWER,
        "lost:|traces:",
    ),
    Broken(
        "a file comes before its row",
        Variant(
            "scp.py",
            "            self._spool.keep(arriving, digest)\n            arrival = Arrival(",
            "            arrival = Arrival(",
        ),
        POWER,
        "lost:|traces:",
    ),
    Broken(
        "what was half received is swept",
        Variant("spool.py", "                leftover.unlink()\n", "                pass\n"),
        POWER,
        "traces:",
    ),
    Broken(
        "an image whose file cannot be written gets no Success",
        Variant(
            "scp.py",
            "except (SpoolError, WorklistError) as error:",
            "except (SpoolError, WorklistError):\n            return SUCCESS\n"
            "        except ZeroDivisionError as error:",
        ),
        "test_resources.py",
        "",
        chosen=("-k", "without_room"),
    ),
    Broken(
        "a UID has one row",
        Variant(
            "worklist/migrations/versions/r0001_first.py",
            'sa.Column("sop_instance_uid", sa.String(64), nullable=False, unique=True)',
            'sa.Column("sop_instance_uid", sa.String(64), nullable=False)',
        ),
        NETWORK,
        "duplicated:",
        short=True,
        chosen=("-k", "same_image"),
    ),
    Broken(
        "what was cut leaves no trace",
        Variant(
            "transport.py",
            "if control & _LAST and (not control & _COMMAND",
            "if (not control & _COMMAND",
        ),
        NETWORK,
        "never sent whole|which nobody sent so",
        chosen=("-k", "cut_at_any_pdu"),
    ),
    Broken(
        "each image ends scored or with a reason",
        Variant(
            "worker.py",
            "                    returned = self._worklist.abandon(self._name)\n",
            "                    returned = 0\n",
        ),
        "test_decoders.py",
        "unsettled:",
        chosen=("-k", "hangs"),
    ),
    Broken(
        "each result is delivered",
        Variant(
            "worklist/__init__.py",
            "(ResultKind.FINDING, ResultKind.HEAT_MAP), record)",
            "(ResultKind.FINDING,), record)",
        ),
        "test_kills.py",
        "undelivered:",
    ),
    Broken(
        "each result is delivered under one identifier",
        Variant("results.py", "uuid.uuid5(_NAMESPACE, name).int", "uuid.uuid4().int"),
        "test_kills.py",
        "duplicated:",
        also=Variant("delivery.py", "claim.result_uid is not None\n", "False\n"),
    ),
    Broken(
        "a clock that is set back puts nothing off",
        Variant("worklist/__init__.py", "> now + FARTHEST", "> now + 9_999_999 * FARTHEST"),
        "test_clock.py",
        "is not None",
        short=True,
        chosen=("-k", "is_due and sqlite"),
    ),
    Broken(
        "a clock that is set ahead ends no association",
        Variant(
            "transport.py",
            "self._idle_timer, self.artim_timer = _Timer(60), _Timer(30)",
            "self._idle_timer, self.artim_timer = Timer(60), Timer(30)",
        ),
        "test_clock.py",
        "== SUCCESS",
        chosen=("-k", "jumps"),
    ),
    Broken(
        "file handles are given back",
        Variant(
            "scp.py",
            "        called = request.called_ae_title\n",
            "        called = request.called_ae_title\n"
            "        self.__dict__.setdefault('leak', []).append(open('/dev/null'))\n",
        ),
        "test_soak.py",
        "handles for each association",
    ),
    Broken(
        "memory is given back",
        Variant(
            "scp.py",
            "        called = request.called_ae_title\n",
            "        called = request.called_ae_title\n"
            "        self.__dict__.setdefault('leak', []).append(association)\n",
        ),
        "test_soak.py",
        "bytes for each association",
    ),
    Broken(
        "a decoder that hangs holds nobody up",
        Variant(
            "worker.py", "signal.setitimer(signal.ITIMER_REAL, SETTLE_SECONDS)", "SETTLE_SECONDS"
        ),
        "test_decoders.py",
        "unsettled:",
        chosen=("-k", "hangs"),
    ),
    Broken(
        "what changes while a site moves is copied",
        Variant(
            "worklist/moving.py",
            "                put(connection, table, now[table.name])\n",
            "                pass\n",
        ),
        "test_moving.py",
        "is missing in|is not as it is here",
    ),
    Broken(
        "a database that a site has left takes nothing",
        Variant(
            "worklist/moving.py",
            "            fence.make(connection, fence.refusing(self._kind, closed(self._to)))\n",
            "",
        ),
        "test_moving.py",
        r"send\(service.port, late, ledger\) == 0",
    ),
]


def test_every_mutation_finds_its_place(tmp_path: Path) -> None:
    """Those, too, that only the long form runs."""
    for number, broken in enumerate(BROKEN):
        changes = [broken.change] if broken.also is None else [broken.change, broken.also]
        variant(tmp_path / str(number), *changes)


@pytest.mark.parametrize(
    "broken",
    [each for each in BROKEN if FULL or each.short],
    ids=lambda broken: broken.promise.replace(" ", "-"),
)
def test_the_suite_sees_a_broken_promise(broken: Broken, tmp_path: Path, tally: Tally) -> None:
    """In a copy of the program with the mutation, a test of this suite fails, for that reason."""
    changes = [broken.change] if broken.also is None else [broken.change, broken.also]
    copy = variant(tmp_path / "copy", *changes)
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "sample_dicom").symlink_to(ROOT / "sample_dicom")
    (copy / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    environment = {**os.environ, "PYTHONPATH": str(copy), "FAULTS_PATIENCE": "90"}
    environment.pop("FAULTS", None)
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
            "--rootdir", str(copy), f"tests/faults/{broken.test}", *broken.chosen,
        ],
        cwd=copy, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout[-3_000:]
    assert re.search(broken.word, done.stdout), done.stdout[-3_000:]
    tally.fault("promises broken on purpose, and seen")
