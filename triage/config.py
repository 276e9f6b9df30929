"""One frozen :class:`Config` from ``triage.toml`` and ``TRIAGE_*`` variables.

A variable beats the file, the file beats the default. The file is the one that
``TRIAGE_CONFIG`` names, else ``triage.toml`` in the working directory, else the one in
``TRIAGE_HOME``.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

from triage.errors import ConfigError

PREFIX = "TRIAGE_"
FILE_VARIABLE = "TRIAGE_CONFIG"
FILE_NAME = "triage.toml"


def valid_ae_title(value: str) -> str:
    """PS3.5 6.2, VR AE: 1 to 16 characters, no backslash or control character."""
    title = value.strip(" ")
    if not 1 <= len(title) <= 16 or "\\" in title or not title.isascii() or not title.isprintable():
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return title


def _absolute(value: Path) -> Path:
    try:
        return value.expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"there is no home of that user: {error}") from error


Port = Annotated[int, Field(ge=0, le=65_535)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class Config(BaseModel):
    """Every setting, valid by construction.

    Raises
    ------
    ConfigError
        From :meth:`read`, in one line that names the setting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: AbsolutePath = Field(
        default=Path("triage-home"),
        validate_default=True,
        description="Folder of everything that the embedded default writes.",
    )
    ae_title: Annotated[str, AfterValidator(valid_ae_title)] = Field(
        default="TRIAGE", description="Our AE title; an association that calls another is rejected."
    )
    dicom_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on; 0.0.0.0 lets consoles on the network in.",
    )
    dicom_port: Port = Field(default=11_112, description="Port of the storage SCP.")
    web_port: Port = Field(default=8_080, description="Port of the worklist page.")
    database_url: str = Field(
        default="",
        description="SQLAlchemy URL of the worklist; empty is SQLite in the home.",
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="How log events are written."
    )
    outside_population: Literal["not_scored", "warn"] = Field(
        default="not_scored",
        description="What becomes of a patient whose age is outside the model's population.",
    )
    max_associations: int = Field(
        default=64, ge=1, le=1_000, description="Associations served at once; more are rejected."
    )
    idle_seconds: float = Field(
        default=60.0,
        gt=0,
        allow_inf_nan=False,
        description="An association silent for so long is aborted.",
    )

    @classmethod
    def read(cls, environment: Mapping[str, str], folder: Path) -> "Config":
        """The configuration of a process.

        Parameters
        ----------
        environment : mapping of str to str
            Usually ``os.environ``.
        folder : Path
            The working directory, where ``triage.toml`` may be.
        """
        known = {(PREFIX + name.upper()): name for name in cls.model_fields}
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        file = cls._file(environment, folder)
        if file is not None:
            values = _toml(file)
            sources = {name: f"{name} in {file}" for name in values}
        for variable in sorted(environment):
            if variable.startswith(PREFIX) and variable != FILE_VARIABLE:
                if variable not in known:
                    raise ConfigError(
                        f"unknown setting {variable} in the environment; known: "
                        + ", ".join([*known, FILE_VARIABLE])
                    )
                values[known[variable]] = environment[variable]
                sources[known[variable]] = variable
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError(_explain(error, sources, tuple(cls.model_fields))) from None

    @staticmethod
    def _file(environment: Mapping[str, str], folder: Path) -> Path | None:
        named = environment.get(FILE_VARIABLE)
        if named:
            return Path(named)
        try:
            home = Path(environment.get(PREFIX + "HOME", folder)).expanduser()
        except RuntimeError:  # a user without a home; the validator says so
            home = folder
        for candidate in (folder / FILE_NAME, home / FILE_NAME):
            if candidate.is_file():
                return candidate
        return None

    @property
    def spool_folder(self) -> Path:
        """Where instance files are."""
        return self.home / "spool"

    @property
    def models_folder(self) -> Path:
        """Where model versions are."""
        return self.home / "models"

    @property
    def locks_folder(self) -> Path:
        """Where running parts hold their locks."""
        return self.home / "run"

    @property
    def worklist_url(self) -> str:
        """The database URL with the default filled in."""
        return self.database_url or f"sqlite:///{self.home / 'worklist.sqlite'}"

    def shown(self) -> dict[str, str]:
        """Every setting as text by its variable's name, passwords hidden."""
        values = {
            PREFIX + name.upper(): str(getattr(self, name)) for name in type(self).model_fields
        }
        values["TRIAGE_DATABASE_URL"] = without_password(self.worklist_url)
        return values


def without_password(url: str) -> str:
    """A database URL that may be shown."""
    url = re.sub(r"([?&][^=&]*passw[^=&]*=)[^&]*", r"\1***", url, flags=re.IGNORECASE)
    scheme, separator, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    if not at or ":" not in credentials:
        return url
    return f"{scheme}{separator}{credentials.split(':', 1)[0]}:***@{place}"


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration file {file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"configuration file {file} is not TOML: {error}") from error


def _explain(error: ValidationError, sources: Mapping[str, str], known: tuple[str, ...]) -> str:
    """The first complaint, in one line that names the setting."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "?"
    where = sources.get(name, name)
    if first["type"] == "extra_forbidden":
        return f"unknown setting {where}; known: {', '.join(known)}"
    # Not the value: it may be a URL with a password.
    shown = "" if name == "database_url" else f" (got {first['input']!r})"
    return f"bad value for {where}: {first['msg'].removeprefix('Value error, ')}{shown}"
