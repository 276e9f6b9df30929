"""One frozen :class:`Config` from ``triage.toml`` and ``TRIAGE_*`` variables.

A variable beats the file, the file beats the default. The file is the one that
``TRIAGE_CONFIG`` names, else ``triage.toml`` in the working directory, else the one in
``TRIAGE_HOME``.
"""

import ipaddress
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    model_validator,
)

from triage.errors import ConfigError
from triage.peers import Peer, Requester, is_loopback, valid_ae_title

PREFIX = "TRIAGE_"
FILE_VARIABLE = "TRIAGE_CONFIG"
FILE_NAME = "triage.toml"


def _absolute(value: Path) -> Path:
    try:
        return value.expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"there is no home of that user: {error}") from error


Port = Annotated[int, Field(ge=0, le=65_535)]
PeerPort = Annotated[int, Field(ge=1, le=65_535)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
OptionalPath = Annotated[AbsolutePath | None, BeforeValidator(lambda value: value or None)]


def _entries(parse: Callable[[str], object]) -> BeforeValidator:
    """Reads a list of texts, or one text with commas between them."""

    def read(value: object) -> object:
        texts = value.split(",") if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("give texts, separated by commas in a variable, or a list of them")
        return tuple(parse(text) for text in texts if text.strip())

    return BeforeValidator(read)


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("write https://HOST/PATH")
    if parts.username is not None or parts.password is not None:
        raise ValueError("no user and password in it: the signature says who sends")
    return value


def store_url(value: str) -> str:
    """Of a bucket or a folder; without user, password or whatever else may be a secret."""
    if not value:
        return ""
    parts = urlsplit(value)
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("nothing but the place: keys come from AWS_ACCESS_KEY_ID and its like")
    if parts.scheme == "s3" and parts.netloc:
        return value.rstrip("/")
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return value
    raise ValueError("write s3://BUCKET/PREFIX or file:///FOLDER")


AFTER_READINGS = "after-readings"
"""The schedule that looks at the number of new readings."""


def _schedule(value: str) -> str:
    if value in {"", AFTER_READINGS}:
        return value
    from apscheduler.triggers.cron import CronTrigger

    try:
        CronTrigger.from_crontab(value, "UTC")
    except ValueError as error:
        raise ValueError(
            f"write five cron fields such as `0 2 * * sat`, or {AFTER_READINGS} ({error})"
        ) from None
    return value


def _time_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("write the IANA name of a time zone, such as Europe/Berlin") from None
    return value


def _field(value: str) -> str:
    if len(value) > 180 or not value.isprintable():
        raise ValueError("give at most 180 printable characters")
    return value


Hl7Name = Annotated[str, AfterValidator(_field)]


class _Destination(BaseModel):
    """What every destination of results has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    timeout_seconds: float = Field(default=30.0, ge=1, le=300, allow_inf_nan=False)
    """An answer that takes longer is none."""


class DicomDestination(_Destination):
    """A PACS that takes the report and the picture by C-STORE."""

    kind: Literal["dicom"]
    host: str = Field(min_length=1)
    port: PeerPort
    ae_title: Annotated[str, AfterValidator(valid_ae_title)]

    def __str__(self) -> str:
        """As an administrator writes it."""
        return f"{self.name} (dicom: {self.ae_title} at {self.host} port {self.port})"


class Hl7Destination(_Destination):
    """An interface engine that takes ORU^R01 messages over MLLP."""

    kind: Literal["hl7"]
    host: str = Field(min_length=1)
    port: PeerPort
    sending_facility: Hl7Name = ""
    receiving_application: Hl7Name = ""
    receiving_facility: Hl7Name = ""

    def __str__(self) -> str:
        """As an administrator writes it."""
        return f"{self.name} (hl7: {self.host} port {self.port})"


class WebhookDestination(_Destination):
    """A program that takes signed JSON by HTTP POST."""

    kind: Literal["webhook"]
    url: Annotated[str, AfterValidator(_url)]
    secret_file: AbsolutePath | None = None
    secret_variable: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """An environment variable that holds the secret."""
    ca_file: AbsolutePath | None = None
    """Whom to trust instead of the system's certificate authorities."""

    @model_validator(mode="after")
    def _one_secret(self) -> "WebhookDestination":
        if (self.secret_file is None) == (self.secret_variable is None):
            raise ValueError("give either secret_file or secret_variable")
        return self

    def __str__(self) -> str:
        """As an administrator writes it; what follows a question mark may be a secret."""
        return f"{self.name} (webhook: {self.url.split('?')[0]})"


Destination = DicomDestination | Hl7Destination | WebhookDestination


def _from_json(value: object) -> object:
    """A variable holds the array of tables as JSON."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value) if value.strip() else []
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(found, list):
        raise ValueError("not an array of tables")  # noqa: TRY004
    return found


def _named_apart(value: tuple[Destination, ...]) -> tuple[Destination, ...]:
    names = [destination.name for destination in value]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two entries are named {name!r}")
    return value


@dataclass(frozen=True, slots=True)
class RoleOf:
    """Which role the identity provider's word for a group stands for.

    Attributes
    ----------
    group : str
    role : str
        ``viewer``, ``reader`` or ``operator``.
    """

    group: str
    role: str

    @classmethod
    def parse(cls, text: str) -> "RoleOf":
        """From ``GROUP=ROLE``; a group's name may hold ``=``, too."""
        group, _, role = (part.strip() for part in text.rpartition("="))
        if not group or role not in {"viewer", "reader", "operator"}:
            raise ValueError(f"{text.strip()!r}: write GROUP=ROLE; roles: viewer, reader, operator")
        return cls(group, role)

    def __str__(self) -> str:
        """As an administrator writes it."""
        return f"{self.group}={self.role}"


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise ValueError(f"{text.strip()!r}: write an address or a CIDR network") from None


def _origin(value: str) -> str:
    """RFC 6454: scheme, host and port."""
    if not value:
        return ""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"}:
        raise ValueError("write https://HOST or https://HOST:PORT, without a path")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("write https://HOST or https://HOST:PORT, and nothing else")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _issuer(value: str) -> str:
    if not value:
        return ""
    value = _url(value)
    parts = urlsplit(value)
    if parts.scheme != "https" and not _on_this_machine(str(parts.hostname)):
        raise ValueError("write https://: who can read the way there could sign in as anybody")
    return value


def _on_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return is_loopback(host)
    except ValueError:  # a name: whose address it is may change
        return False


def _viewer_url(value: str) -> str:
    if not value:
        return value
    try:
        tried = value.format(study_instance_uid="1.2", accession_number="A")
        parts = urlsplit(tried)
    except (LookupError, ValueError) as error:
        raise ValueError(
            "between braces stand only study_instance_uid and accession_number"
        ) from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("write https://HOST/...{study_instance_uid}")
    return value


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
    dicom_port: Port = Field(
        default=11_112, description="Port of the SCP without TLS; 0 closes it, and leaves TLS."
    )
    tls_port: Annotated[int, Field(ge=1, le=65_535)] = Field(
        default=2_762, description="Port of the SCP with TLS, once there is a certificate."
    )
    tls_certificate: OptionalPath = Field(
        default=None, description="PEM file of our certificate and the intermediate ones."
    )
    tls_key: OptionalPath = Field(
        default=None, description="PEM file of the certificate's key, without a password."
    )
    tls_ca: OptionalPath = Field(
        default=None,
        description="PEM file of who signs the consoles' certificates; with it, each needs one.",
    )
    peers: Annotated[tuple[InstanceOf[Peer], ...], _entries(Peer.parse)] = Field(
        default=(),
        description="Who may associate: AETITLE, AETITLE@ADDRESS, AETITLE@CIDR or *@CIDR; none "
        "is this machine only.",
    )
    commitment_peers: Annotated[tuple[InstanceOf[Requester], ...], _entries(Requester.parse)] = (
        Field(
            default=(),
            description="Where reports of Storage Commitment go: AETITLE@HOST:PORT of who asks.",
        )
    )
    web_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address of the worklist page; another than loopback needs TLS or a proxy.",
    )
    web_port: Port = Field(
        default=8_080, description="Port of the worklist page; 0 is any that is free."
    )
    web_url: Annotated[str, AfterValidator(_origin)] = Field(
        default="",
        description="What people type to reach the page, https://HOST; empty is host and port.",
    )
    web_tls_certificate: OptionalPath = Field(
        default=None, description="PEM file of the page's certificate and the intermediate ones."
    )
    web_tls_key: OptionalPath = Field(
        default=None, description="PEM file of that certificate's key, without a password."
    )
    web_behind_proxy: Annotated[
        tuple[InstanceOf[ipaddress.IPv4Network] | InstanceOf[ipaddress.IPv6Network], ...],
        _entries(_network),
    ] = Field(
        default=(),
        description="Addresses of the proxies that do TLS for the page; only they get an answer.",
    )
    viewer_url: Annotated[str, AfterValidator(_viewer_url)] = Field(
        default="",
        description="The site's own viewer, with {study_instance_uid} and {accession_number}.",
    )
    blind_sample: float = Field(
        default=0.02,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of exams whose score is hidden until they are read, at random.",
    )
    session_idle_minutes: int = Field(
        default=60, ge=1, le=1_440, description="Who does nothing for so long is signed out."
    )
    session_hours: int = Field(
        default=12, ge=1, le=168, description="After so long everybody signs in anew."
    )
    oidc_issuer: Annotated[str, AfterValidator(_issuer)] = Field(
        default="", description="URL of the OpenID Connect provider; empty is local accounts only."
    )
    oidc_client_id: str = Field(default="", description="What the provider calls this program.")
    oidc_client_secret_file: OptionalPath = Field(
        default=None, description="File with the client secret; none for a public client."
    )
    oidc_name_claim: str = Field(
        default="preferred_username",
        min_length=1,
        description="The claim that becomes the account's name.",
    )
    oidc_role_claim: str = Field(
        default="groups",
        min_length=1,
        description="The claim that holds groups; dots lead into objects.",
    )
    oidc_roles: Annotated[tuple[InstanceOf[RoleOf], ...], _entries(RoleOf.parse)] = Field(
        default=(),
        description="GROUP=ROLE each; who is in none of the groups may not sign in.",
    )
    oidc_ca_file: OptionalPath = Field(
        default=None, description="PEM file of who signs the provider's certificate."
    )
    spool_url: Annotated[str, AfterValidator(store_url)] = Field(
        default="",
        description="Instance files and models of several nodes: s3://BUCKET or file:///FOLDER.",
    )
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
    max_object_mb: int = Field(
        default=512, ge=1, le=4_096, description="A larger data set is refused."
    )
    max_arriving_mb: int = Field(
        default=1_024,
        ge=1,
        le=65_536,
        description="Memory for all data sets that arrive at once; what exceeds it is refused.",
    )

    destinations: Annotated[
        tuple[Annotated[Destination, Field(discriminator="kind")], ...],
        BeforeValidator(_from_json),
        AfterValidator(_named_apart),
    ] = Field(
        default=(),
        description="Where results go: [[destinations]] tables, or a JSON array in the variable.",
    )
    organization: str = Field(
        default="",
        max_length=64,
        description="To which readers answer; reports of readings are VERIFIED in its name.",
    )
    delivery_attempts: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="So often a delivery is tried before it is parked; refused ones sooner.",
    )
    delivery_pause_seconds: float = Field(
        default=5.0,
        gt=0,
        le=3_600,
        allow_inf_nan=False,
        description="The pause after a first failed attempt; it doubles, up to 15 minutes.",
    )
    fleet_url: Annotated[str, AfterValidator(lambda value: _url(value) if value else value)] = (
        Field(
            default="", description="Repository of model versions that `triage models pull` asks."
        )
    )
    fleet_root: OptionalPath = Field(
        default=None, description="The root.json that the fleet's administrator handed over."
    )
    fleet_pull_hours: int = Field(
        default=24,
        ge=0,
        le=8_760,
        description="Hours between two looks for a new version; 0 looks by command only.",
    )
    fleet_report_url: Annotated[
        str, AfterValidator(lambda value: _url(value) if value else value)
    ] = Field(default="", description="Who is told how the model fares here, without patient data.")
    fleet_ring: int = Field(
        default=1, ge=0, le=9, description="Ring 0 gets new model versions first, then ring 1."
    )
    retrain_schedule: Annotated[str, AfterValidator(_schedule)] = Field(
        default="",
        description="When to retrain: five cron fields, `after-readings`, or empty for never.",
    )
    retrain_after_readings: int = Field(
        default=200, ge=1, le=1_000_000, description="New readings that are worth a retraining."
    )
    retrain_time_zone: Annotated[str, AfterValidator(_time_zone)] = Field(
        default="UTC", description="Of the cron fields: an IANA name such as Europe/Berlin."
    )
    retrain_jitter_seconds: int = Field(
        default=0, ge=0, le=86_400, description="Starts are moved at random by up to so much."
    )
    retrain_grace_minutes: int = Field(
        default=240, ge=1, le=10_080, description="A start missed for longer waits for the next."
    )
    retrain_epochs: int = Field(
        default=4, ge=1, le=100, description="How often each picture is shown in a retraining."
    )
    retrain_threads: int = Field(
        default=2, ge=1, le=256, description="Of a retraining's arithmetic."
    )
    retrain_ray: str = Field(
        default="",
        description="A Ray cluster that trains, as triage rescore takes it; empty is this machine.",
    )
    retrain_nice: int = Field(
        default=19,
        ge=0,
        le=19,
        description="A retraining's niceness; 19 runs when nothing else does.",
    )
    retrain_base_data: OptionalPath = Field(
        default=None,
        description="What the champion was trained on, to be rehearsed: folder or subsample.",
    )
    retrain_pictures: int = Field(
        default=1_000,
        ge=1,
        le=1_000_000,
        description="Of the base data, and at least of the site, shown in an epoch.",
    )
    retrain_reference: OptionalPath = Field(
        default=None, description="Labelled folder of held-out base data: the gate's reference set."
    )
    retrain_policy: OptionalPath = Field(
        default=None, description="TOML file of the gate's policy."
    )
    retrain_locked: OptionalPath = Field(
        default=None, description="File with a SOP Instance UID a line that may not be lost."
    )
    shadow_exams: int = Field(
        default=100,
        ge=0,
        le=1_000_000,
        description="Exams that a challenger scores in shadow before it may be approved.",
    )
    drift_patience: int = Field(
        default=100_000,
        ge=1_000,
        le=1_000_000_000,
        description="Exams between two false alarms of drift, on average and for each measure.",
    )
    retrain_promotion: Literal["person", "automatic"] = Field(
        default="person", description="Who approves a proven challenger."
    )

    exam_share: float = Field(
        default=0.3,
        ge=0,
        le=0.9,
        allow_inf_nan=False,
        description="Share of patients with readings that no training sees: the site exam.",
    )
    keep_days: int = Field(
        default=0,
        ge=0,
        le=36_500,
        description="Days after its last reading that a read exam's object is kept; 0 is for ever.",
    )
    keep_array_days: int = Field(
        default=0,
        ge=0,
        le=36_500,
        description="The same of its array, 256 x 256, for training; 0 is for ever.",
    )

    workers: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Scoring processes of `triage serve`; with two, an exam that keeps one busy "
        "holds up no other. Each takes up to 400 MB.",
    )

    metrics_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address of the parts' metrics and health; they hold no patient data.",
    )
    metrics_port: Annotated[int, Field(ge=0, le=65_000)] = Field(
        default=0,
        description="Port of the first part's metrics and health; each further part has the next "
        "(docs/metrics.md). 0 is none.",
    )
    traces_url: Annotated[str, AfterValidator(lambda value: _url(value) if value else value)] = (
        Field(
            default="",
            description="Where traces go by OTLP over HTTP, http://HOST:4318/v1/traces; needs the "
            "extra `otel`.",
        )
    )
    traces_share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of radiographs that are traced.",
    )

    @model_validator(mode="after")
    def _fit_together(self) -> "Config":
        certificate = self.tls_certificate is not None
        if certificate != (self.tls_key is not None):
            raise ValueError("tls_certificate and tls_key belong together: set both or none")
        if self.tls_ca is not None and not certificate:
            raise ValueError("tls_ca needs tls_certificate and tls_key")
        if self.dicom_port == 0 and not certificate:
            raise ValueError(
                "dicom_port 0 leaves TLS only: set tls_certificate and tls_key, or a dicom_port"
            )
        if certificate and self.dicom_port == self.tls_port:
            raise ValueError("dicom_port and tls_port are the same: TLS needs a port of its own")
        if bool(self.fleet_url) != (self.fleet_root is not None):
            raise ValueError("fleet_url and fleet_root belong together: set both or none")
        if self.keep_array_days and not 0 < self.keep_days <= self.keep_array_days:
            raise ValueError("keep_array_days needs a keep_days that is no longer")
        if self.max_arriving_mb < self.max_object_mb:
            raise ValueError("max_arriving_mb is less than max_object_mb")
        self._web_fits_together()
        titles = [each.ae_title for each in self.commitment_peers]
        if len(titles) != len(set(titles)):
            raise ValueError("commitment_peers names an AE title twice")
        return self

    def _web_fits_together(self) -> None:
        encrypted = self.web_tls_certificate is not None
        if encrypted != (self.web_tls_key is not None):
            raise ValueError(
                "web_tls_certificate and web_tls_key belong together: set both or none"
            )
        if not (encrypted or self.web_behind_proxy or _on_this_machine(self.web_host)):
            raise ValueError(
                f"web_host {self.web_host} lets the network in without encryption: set "
                "web_tls_certificate and web_tls_key, or web_behind_proxy to the address of a "
                "proxy that does TLS"
            )
        if self.web_behind_proxy and not self.web_url:
            raise ValueError("web_behind_proxy needs web_url: the address that people type")
        if self.oidc_issuer and not (self.oidc_client_id and self.oidc_roles):
            raise ValueError("oidc_issuer needs oidc_client_id and oidc_roles")

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
        """Where instance files arrive, and where they stay without a ``spool_url``."""
        return self.home / "spool"

    @property
    def models_folder(self) -> Path:
        """Where model versions are."""
        return self.home / "models"

    @property
    def keys_folder(self) -> Path:
        """Where the key that signs bundles is, and those that are trusted."""
        return self.home / "keys"

    @property
    def arrays_folder(self) -> Path:
        """Where training keeps the arrays of labelled exams."""
        return self.home / "training" / "arrays"

    @property
    def fleet_folder(self) -> Path:
        """What was seen of the fleet's repository."""
        return self.home / "fleet"

    @property
    def retrainings_folder(self) -> Path:
        """Where retrainings work; each in a folder of its number."""
        return self.home / "training" / "runs"

    @property
    def snapshots_folder(self) -> Path:
        """What challengers were trained on: a manifest for each snapshot, by its digest."""
        return self.home / "training" / "snapshots"

    @property
    def locks_folder(self) -> Path:
        """Where running parts hold their locks."""
        return self.home / "run"

    @property
    def audit_anchor(self) -> Path:
        """Where the end of the audit trail is remembered outside of the database."""
        return self.home / "audit-head"

    @property
    def worklist_url(self) -> str:
        """The database URL with the default filled in."""
        return self.database_url or f"sqlite:///{self.home / 'worklist.sqlite'}"

    @property
    def web_origin(self) -> str:
        """What browsers call the page: scheme, host and port (RFC 6454)."""
        if self.web_url:
            return self.web_url
        scheme, usual = ("https", 443) if self.web_tls_certificate else ("http", 80)
        host = f"[{self.web_host}]" if ":" in self.web_host else self.web_host
        return f"{scheme}://{host}" + (f":{self.web_port}" if self.web_port != usual else "")

    @property
    def web_is_secure(self) -> bool:
        """Whether browsers reach the page by TLS."""
        return self.web_origin.startswith("https://")

    def shown(self) -> dict[str, str]:
        """Every setting as text by its variable's name, passwords hidden."""
        values = {
            PREFIX + name.upper(): _shown(getattr(self, name)) for name in type(self).model_fields
        }
        values["TRIAGE_DATABASE_URL"] = without_password(self.worklist_url)
        values["TRIAGE_DESTINATIONS"] = "; ".join(map(str, self.destinations)) or "none"
        return values


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


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
    if not first["loc"]:  # of settings that do not fit together
        return f"bad settings: {first['msg'].removeprefix('Value error, ')}"
    name = str(first["loc"][0])
    where = sources.get(name, name)
    if name == "destinations":
        told = _explain_destination(first) if len(first["loc"]) > 1 else first["msg"]
        return f"bad value for {where}: {told.removeprefix('Value error, ')}"
    if first["type"] == "extra_forbidden":
        return f"unknown setting {where}; known: {', '.join(known)}"
    # Not the value: it may be a URL with a password.
    shown = "" if name == "database_url" else f" (got {first['input']!r})"
    return f"bad value for {where}: {first['msg'].removeprefix('Value error, ')}{shown}"


def _explain_destination(complaint: Mapping[str, Any]) -> str:
    """Which entry and which key; never a value, which may be a secret in the wrong place."""
    _, number, *place = complaint["loc"]
    entry = f"entry {number + 1}"
    if not place and complaint["type"] != "value_error":
        return f"{entry}: kind must be 'dicom', 'hl7' or 'webhook'"
    kind, key = f" ({place[0]})", ".".join(map(str, place[1:]))
    if complaint["type"] == "extra_forbidden":
        return f"{entry}{kind}: unknown key {key}"
    told = complaint["msg"].removeprefix("Value error, ")
    return f"{entry}{kind}: {key}: {told}" if key else f"{entry}{kind}: {told}"
