"""Error rates of novelty and image quality findings, as the tables of two documents.

    python -m tests.benchmarks.pictures --data DIR

prints the tables of ``docs/novelty.md`` and ``docs/quality.md``. DIR is the Kermany data
set. Its patients are dealt into five parts; what is said of a part's pictures is said by
parameters that were fitted, limits included, on the other four. Everything else is judged
by parameters fitted on all. Takes about ten minutes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from sample_dicom.draw import chest, hand, lateral
from tests.degrade import (
    DEGRADED,
    MILD,
    WRONG,
    Degrade,
    drawn,
    moved,
    no_radiographs,
    pydicom_pictures,
    saturated,
)
from training.dataset import CLASSES, Snapshot, patient_of, read_folder
from training.novelty import folds
from training.quality import fit_quality, material
from triage.pixels import SIDE, Array, normalize_file
from triage.quality import Quality, picture_hash, same_picture

EVERY = 5
"""Degradations are tried on one picture in so many."""

NOVELTY_HEAD = (
    "| pictures | number | called novel | 95% interval | novelty: least / median / greatest |\n"
    "|---|---|---|---|---|"
)
FINDING_HEAD = "| finding | pictures | number | raised | 95% interval |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class Subjects:
    """The radiographs, each with a judge that was fitted without its patient.

    Attributes
    ----------
    snapshot : Snapshot
    arrays : ndarray of float16, shape (cases, 256, 256)
    judges : list of Quality
        One for each case.
    whole : Quality
        Fitted on all.
    full : list of pairs of Quality and array
        The full-size radiographs.
    chests : mapping
        Drawn ones, by kind.
    """

    snapshot: Snapshot
    arrays: npt.NDArray[np.float16]
    judges: list[Quality]
    whole: Quality
    full: list[tuple[Quality, Array]]
    chests: dict[str, list[Array]]

    @classmethod
    def of(cls, data: Path) -> "Subjects":
        """Read, fit six times and draw."""
        snapshot = read_folder(data)
        arrays = snapshot.arrays(lambda _: None)[..., 0]
        given = material(arrays, snapshot.patients, 0)
        whole = fit_quality(given)
        judges = [whole] * len(arrays)
        for rest, held in folds(snapshot.patients):
            fitted = fit_quality(given.of(rest))
            for index in held:
                judges[index] = fitted
        of_patient = dict(zip(snapshot.patients, judges, strict=True))
        full = [
            (of_patient[patient_of(path.stem)], normalize_file(path))
            for path in sorted((data / "fullres").glob("*/*.jpeg"))
        ]
        ill = {"opacity": 0.9, "projection": "AP", "age": 2}
        chests = {
            "drawn chests, PA": [drawn(chest(seed)) for seed in range(30)],
            "drawn chests, AP, opacity": [drawn(chest(seed, **ill)) for seed in range(30)],
            "drawn chests of adults": [drawn(chest(seed, age=40)) for seed in range(30)],
        }
        return cls(snapshot, arrays, judges, whole, full, chests)

    def all(self) -> Iterator[tuple[Quality, Array]]:
        """Every radiograph as it is."""
        for judge, array in zip(self.judges, self.arrays, strict=True):
            yield judge, array.astype(np.float32)

    def some(self, degrade: Degrade) -> Iterator[tuple[Quality, Array]]:
        """One radiograph in :data:`EVERY`, degraded."""
        for index in range(0, len(self.arrays), EVERY):
            yield self.judges[index], degrade(self.arrays[index].astype(np.float32))


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (JASA 22, 1927)."""
    z, share = 1.96, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def row(name: str, hits: Iterable[bool], *more: str) -> str:
    """A line of a table: name, number, share, interval."""
    raised = list(hits)
    low, high = interval(sum(raised), len(raised))
    share = f"{100 * sum(raised) / len(raised):.1f}% | {100 * low:.1f} to {100 * high:.1f}%"
    return "| " + " | ".join([name, f"{len(raised)}", share, *more]) + " |"


def novelty_row(name: str, values: Iterable[float]) -> str:
    """A line of the table of novelties."""
    found = np.array(list(values))
    spread = f"{found.min():.2f} / {np.median(found):.2f} / {found.max():.2f}"
    return row(name, found > 1.0, spread)


def novelties(pairs: Iterable[tuple[Quality, Array]]) -> npt.NDArray[np.float64]:
    """The novelty of each picture to its judge."""
    return np.array([judge.novelty.measure(array) for judge, array in pairs])


def admitted(subjects: Subjects) -> Iterator[str]:
    """The table of what is to be admitted."""
    yield "\n### Frontal chests: to be admitted\n\n" + NOVELTY_HEAD
    as_they_are = novelties(subjects.all())
    for label, name in enumerate(CLASSES):
        yield novelty_row(
            f"training radiographs, {name}", as_they_are[subjects.snapshot.labels == label]
        )
    yield novelty_row("full-size radiographs", novelties(subjects.full))
    for name, degrade in MILD.items():
        yield novelty_row(name, novelties(subjects.some(degrade)))
    adult = [array for name, array in pydicom_pictures() if name.startswith("RG1")]
    pictures = {**subjects.chests, "RG1 of pydicom-data, a chest of an adult": adult}
    for name, group in pictures.items():
        yield novelty_row(name, map(subjects.whole.novelty.measure, group))


def refused(subjects: Subjects) -> Iterator[str]:
    """The table of what is to be refused."""
    yield "\n### Anything else: to be refused\n\n" + NOVELTY_HEAD
    for name, degrade in WRONG.items():
        yield novelty_row(name, novelties(subjects.some(degrade)))
    files = list(pydicom_pictures())
    groups = {
        "drawn hands": [drawn(hand(seed)) for seed in range(30)],
        "drawn laterals": [drawn(lateral(seed)) for seed in range(30)],
        "RG3 of pydicom-data, a leg": [array for name, array in files if name.startswith("RG3")],
        "pydicom's other pictures": [array for name, array in files if not name.startswith("RG")],
        **no_radiographs(),
    }
    for name, pictures in groups.items():
        yield novelty_row(name, map(subjects.whole.novelty.measure, pictures))


def false_alarms(subjects: Subjects) -> Iterator[str]:
    """The table of findings on radiographs as they are."""
    yield "\n### False alarms: radiographs as they are\n\n" + FINDING_HEAD
    groups = {
        "training radiographs": [judge.findings(array) for judge, array in subjects.all()],
        "full-size radiographs": [judge.findings(array) for judge, array in subjects.full],
        "drawn chests": [
            subjects.whole.findings(array) for group in subjects.chests.values() for array in group
        ],
    }
    for code in DEGRADED:
        for name, found in groups.items():
            yield f"| `{code}` " + row(name, [code in codes for codes in found])
    yield "| any " + row("training radiographs", map(bool, groups["training radiographs"]))


def detection(subjects: Subjects) -> Iterator[str]:
    """The table of findings on degraded copies."""
    yield "\n### Detection: degraded copies\n"
    yield "| finding | pictures | number | raised | 95% interval | not scored, as novel |"
    yield "|---|---|---|---|---|---|"
    for code, degradations in DEGRADED.items():
        for name, degrade in degradations.items():
            pairs = list(subjects.some(degrade))
            found = [code in judge.findings(array) for judge, array in pairs]
            yield f"| `{code}` " + row(name, found, f"{np.mean(novelties(pairs) > 1.0):.1%}")


def other_alarms(subjects: Subjects) -> Iterator[str]:
    """The table of findings on mild changes, where one is raised on more than 1%."""
    yield "\n### Findings on mildly changed copies, where above 1%\n\n" + FINDING_HEAD
    for name, degrade in MILD.items():
        found = [judge.findings(array) for judge, array in subjects.some(degrade)]
        for code in DEGRADED:
            hits = [code in codes for codes in found]
            if sum(hits) > 0.01 * len(hits):
                yield f"| `{code}` " + row(name, hits)


def duplicates(subjects: Subjects) -> Iterator[str]:
    """The table of pairs that are held for one exposure."""
    yield "\n### Duplicate exposures\n"
    yield "| pairs | number | called the same | 95% interval |\n|---|---|---|---|"
    hashes = [picture_hash(array) for _, array in subjects.all()]
    copies = {
        name: MILD[name]
        for name in ("gamma 0.7", "gamma 1.4", "noise of 0.05", "JPEG of quality 50")
    }
    copies |= {
        "blur of 2 pixels": MILD["blur of 2 pixels"],
        "window: 5% white, 10% black": saturated(0.10, 0.05),
        "moved one pixel": moved(across=1 / SIDE),
    }
    for name, degrade in copies.items():
        pairs = zip(hashes[::EVERY], subjects.some(degrade), strict=True)
        yield row(
            f"a picture and its copy: {name}",
            [same_picture(known, picture_hash(array)) for known, (_, array) in pairs],
        )
    patients = subjects.snapshot.patients
    of_patient = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]
    own = [pair for rows in of_patient for pair in combinations(rows, 2)]
    yield row("two of one patient", [same_picture(hashes[i], hashes[j]) for i, j in own])
    drawn_pairs = np.random.default_rng(0).integers(len(hashes), size=(20_000, 2))
    foreign = [(i, j) for i, j in drawn_pairs if patients[i] != patients[j]]
    yield row("two of two patients", [same_picture(hashes[i], hashes[j]) for i, j in foreign])


@click.command(help="Print the tables of docs/novelty.md and docs/quality.md.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
def main(data: Path) -> None:
    """Measure, and print."""
    subjects = Subjects.of(data)
    for table in (admitted, refused, false_alarms, detection, other_alarms, duplicates):
        for line in table(subjects):
            click.echo(line)


if __name__ == "__main__":
    main()
