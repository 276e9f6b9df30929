"""Immutable model versions and the alias that says which one scores.

A registry is a folder. Each version is a subfolder that is written once and never
changed: ``model.json`` (its description, with the SHA-256 of every other file), the
exported network and the Keras weights. ``aliases.json`` beside them maps ``champion`` to a
version; it is replaced atomically, so a reader sees the old champion or the new one.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triage.admission import Population
from triage.durable import make_folder, sync
from triage.errors import ModelError

FORMAT = 1
"""The version of ``model.json`` that this program writes and reads."""

DESCRIPTION = "model.json"
EXPORTED = "model.xml"
ALIASES = "aliases.json"
CHAMPION = "champion"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One trained network and everything that is stated about it.

    Attributes
    ----------
    version : str
        Its name, unique for ever: architecture and a hash of its files.
    folder : Path
        Where its files are.
    pixel_fingerprint : str
        The only :func:`triage.pixels.fingerprint` whose arrays it may score.
    threshold : float
        The probability, 0 to 1, at and above which an exam is flagged.
    population : Population
    description : mapping
        The whole of ``model.json``.
    """

    version: str
    folder: Path
    pixel_fingerprint: str
    threshold: float
    population: Population
    description: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "ModelVersion":
        """Read and verify a version.

        Raises
        ------
        ModelError
            The folder has no readable description, or a file is missing or not the one
            that was described.
        """
        try:
            description = json.loads((folder / DESCRIPTION).read_text("utf-8"))
            if description["format"] != FORMAT:
                raise ModelError(
                    f"model version in {folder} has format {description['format']}, this program "
                    f"reads {FORMAT}: use the program that made it, or a newer one"
                )
            for name, expected in description["files"].items():
                if file_hash(folder / name) != expected:
                    raise ModelError(
                        f"model file {folder / name} is not the one that was described "
                        "(SHA-256 differs): restore it or remove the version"
                    )
            population = description["population"]
            age = population["age_years"]
            version, threshold = str(description["version"]), float(description["threshold"])
            if not 0.0 <= threshold <= 1.0:
                raise ValueError(f"threshold {threshold} is not 0 to 1")
            for name in (version, *description["files"]):
                if name in {"", ".", ".."} or Path(name).name != name:
                    raise ValueError(f"{name!r} is not the name of a file")
            if not isinstance(description["created_at"], str):
                raise TypeError("created_at is not a text")
            return cls(
                version=version,
                folder=folder,
                pixel_fingerprint=str(description["pixel_fingerprint"]),
                threshold=threshold,
                population=Population(
                    str(population["description"]),
                    None if age is None else (int(age[0]), int(age[1])),
                    tuple(map(str, population["views"])),
                ),
                description=description,
            )
        except OSError as error:
            raise ModelError(
                f"model version in {folder} cannot be read: {error.strerror}: {error.filename}"
            ) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{folder / DESCRIPTION} is damaged ({type(error).__name__}: {error}): "
                "restore it or remove the version"
            ) from error


class Registry:
    """The model versions in a folder.

    Parameters
    ----------
    folder : Path
        Made when the first version is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, source: Path) -> ModelVersion:
        """Copy a version in, once; adding it again changes nothing.

        Raises
        ------
        ModelError
            It is damaged, another version has its name, or the folder cannot be written.
        """
        model = ModelVersion.load(source)
        target = self.folder / model.version
        if target.exists():
            return _same(target, model)
        try:
            make_folder(self.folder)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".adding-") as temporary:
                copy = Path(temporary) / model.version
                copy.mkdir()
                for name in (DESCRIPTION, *model.description["files"]):
                    shutil.copyfile(source / name, copy / name)
                    sync(copy / name)
                sync(copy)
                copy.rename(target)
                sync(self.folder)
        except OSError as error:
            if target.exists():  # another process was faster
                return _same(target, model)
            raise ModelError(
                f"cannot add model {model.version} to {self.folder}: {error.strerror}"
            ) from error
        return ModelVersion.load(target)

    def versions(self) -> list[ModelVersion]:
        """All versions, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [
            ModelVersion.load(folder)
            for folder in self.folder.iterdir()
            if (folder / DESCRIPTION).is_file()
        ]
        return sorted(found, key=lambda model: (model.description["created_at"], model.version))

    def aliases(self) -> dict[str, str]:
        """Alias to version; empty before the first."""
        path = self.folder / ALIASES
        try:
            content = json.loads(path.read_text("utf-8"))
            return {str(alias): str(version) for alias, version in content.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(f"{path} cannot be read ({error}): restore it or remove it") from error

    def champion(self) -> ModelVersion:
        """The version that scores.

        Raises
        ------
        ModelError
            None is named, or it is damaged.
        """
        version = self.aliases().get(CHAMPION)
        if version is None:
            raise ModelError(f"{self.folder} names no champion: start `triage serve` once")
        return self.version(version)

    def version(self, name: str) -> ModelVersion:
        """A version by its name.

        Raises
        ------
        ModelError
            It is not here, or it is damaged.
        """
        return ModelVersion.load(self.folder / name)

    def name(self, alias: str, version: str) -> None:
        """Let an alias point at a version, atomically and durably."""
        ModelVersion.load(self.folder / version)
        content = json.dumps({**self.aliases(), alias: version}, indent=2) + "\n"
        descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=".aliases-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(self.folder / ALIASES)
        sync(self.folder)


def _same(folder: Path, model: ModelVersion) -> ModelVersion:
    """The version in a folder, if it is this model."""
    known = ModelVersion.load(folder)
    if known.description != model.description:
        raise ModelError(f"{folder} already holds another model of that name")
    return known


def file_hash(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
