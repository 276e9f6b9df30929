"""What is known of a data set besides its pictures: source, licence, population."""

import tomllib
from pathlib import Path

from training.dataset import Snapshot, published
from training.fit import About
from triage.errors import DataError

KERMANY = About(
    name="Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification",
    attribution=(
        "Kermany, Zhang and Goldbaum, Mendeley Data, doi 10.17632/rscbjbr9sj; described in "
        "Kermany et al., Cell 172, 2018, doi 10.1016/j.cell.2018.02.010"
    ),
    licence="CC BY 4.0",
    population=(
        "Children aged one to five, Guangzhou Women and Children's Medical Center, frontal "
        "chest radiographs"
    ),
    age_years=[1, 5],
    views=["AP", "PA"],
)
"""The published data set that the bundled models are trained on."""

UNSTATED = About(
    name="not stated",
    attribution="not stated",
    licence="not stated",
    population="not stated",
    age_years=None,
    views=["AP", "PA"],
)


def about(snapshot: Snapshot, file: Path | None) -> About:
    """The description in a TOML file; else what the file names give away.

    Raises
    ------
    DataError
        The file cannot be read, lacks a key or has one too many.
    """
    if file is None:
        return KERMANY if published(snapshot.cases) else UNSTATED
    try:
        return About(**tomllib.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        keys = ", ".join(About.__slots__)
        raise DataError(f"--about {file}: {error}; it needs the keys {keys}") from error
