"""Cases with labels, scored by both versions: what the gate measures."""

import datetime as dt
import os
from pathlib import Path

import numpy as np

from training.dataset import Snapshot, read_folder
from training.gate import Contender, Exam, Policy, decide, figures
from training.gate_report import report
from triage.errors import DataError, PixelsError
from triage.network import Network
from triage.pixels import normalize_file
from triage.registry import ModelVersion, Registry, StoredDecision


def score(snapshot: Snapshot, champion: Network, challenger: Network) -> Exam:
    """Score every picture with both.

    A labelled folder tells neither age nor sex, view or console: the exam has no subgroups.

    Raises
    ------
    DataError
        A picture cannot be read.
    """
    cases = snapshot.cases
    scores = np.empty((2, len(cases)))
    for index, case in enumerate(cases):
        try:
            array = normalize_file(case.path)
        except PixelsError as error:
            raise DataError(f"{case.path} cannot be scored: {error}") from error
        for row, network in enumerate((champion, challenger)):
            scores[row, index] = network.score(array).probability
    return Exam(
        np.array([case.name for case in cases]),
        snapshot.patients,
        snapshot.labels,
        scores[0],
        scores[1],
        np.ones(len(cases)),
    )


def run_gate(
    registry: Registry,
    challenger: str,
    exam: Path,
    reference: Path | None,
    trained_on: Path | None,
    locked: Path | None,
    policy: Policy,
) -> StoredDecision:
    """Compare a challenger with the champion on labelled folders, and store the decision.

    Parameters
    ----------
    registry : Registry
    challenger : str
        A version.
    exam, reference, trained_on : Path
        Labelled folders as in :func:`training.dataset.read_folder`. ``trained_on`` is the one
        that the challenger's snapshot was made of; None if that was at another site.
    locked : Path, or None
        A case a line, by its name in a folder.
    policy : Policy

    Raises
    ------
    DataError
        A folder or a file cannot be used, or is not what the challenger was trained on.
    ModelError
        A version is not there, damaged, or cannot score here.
    """
    new, old = registry.version(challenger), registry.champion()
    if new.version == old.version:
        raise DataError(f"{challenger} is the champion: it cannot be its own challenger")
    seen = None if trained_on is None else _trained(new, trained_on)
    names = frozenset[str]() if locked is None else _lines(locked)
    networks = Network(old), Network(new)
    site = score(read_folder(exam), *networks)
    base = None if reference is None else score(read_folder(reference), *networks)
    decision = decide(
        figures(
            Contender(old.version, old.threshold, None),
            Contender(new.version, new.threshold, seen),
            site,
            base,
            names,
            policy,
        ),
        policy,
    )
    now = dt.datetime.now(dt.UTC)
    return registry.decided(
        decision.as_json(now).encode("utf-8"),
        report(decision, site, base, now).encode("utf-8"),
        f"gate, run by uid {os.getuid()}",
    )


def _trained(model: ModelVersion, folder: Path) -> frozenset[str]:
    """The patients that a version was trained and validated on."""
    snapshot = read_folder(folder)
    unseen = snapshot.never_seen(model.description)
    return frozenset(np.delete(snapshot.patients, unseen).tolist())


def _lines(path: Path) -> frozenset[str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__})") from error
    return frozenset(line.strip() for line in lines if line.strip())
