"""New model versions from the fleet's repository, by The Update Framework (TUF 1.0).

The repository is files on any web server, which need not be trusted: what it serves is signed,
by keys that the first ``root.json`` names. An older state than was seen here (rollback), one
that is not renewed any more (freeze), mixed states and changed files are refused by
python-tuf; every refusal becomes a line of ours. What is pulled is a bundle, and enters like
one from a memory stick: its own signature, hashes, fingerprint and population count as well.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
from tuf.api import exceptions
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.updater import Updater

from triage.bundles import MAX_BYTES, MAX_MANIFEST
from triage.durable import make_folder
from triage.errors import FleetError

SECONDS = 20.0
"""So long a fleet may take to answer."""

METADATA = "metadata"
TARGETS = "targets"


def target(ring: int) -> str:
    """The name of what a ring is to have.

    Parameters
    ----------
    ring : int
        0 gets new versions first, to find out; then 1, and so on.
    """
    return f"ring-{ring}.bundle"


def tell(url: str, content: Mapping[str, Any]) -> None:
    """POST a site's summary as JSON; any status from 200 to 299 has taken it.

    Raises
    ------
    FleetError
        Nobody answers, or it is refused.
    """
    host = urlsplit(url).hostname
    try:
        answer = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(SECONDS)).request(
            "POST", url, json=content, redirect=False, preload_content=False
        )
    except urllib3.exceptions.HTTPError as error:
        raise FleetError(
            f"the report was not taken: no answer from {host} ({type(error).__name__}); see "
            "TRIAGE_FLEET_REPORT_URL"
        ) from error
    answer.close()
    if not 200 <= answer.status <= 299:
        raise FleetError(
            f"the report was not taken: {host} answered {answer.status}; see "
            "TRIAGE_FLEET_REPORT_URL"
        )


def pull(url: str, root: Path, ring: int, folder: Path) -> Path | None:
    """Fetch what the fleet has released for a ring, if it was not fetched before.

    Parameters
    ----------
    url : str
        Of the repository; ``metadata`` and ``targets`` are below it.
    root : Path
        The ``root.json`` that the fleet's administrator handed over. Later ones are followed
        from it.
    ring : int
    folder : Path
        What was seen is kept here: without it a rollback could not be told.

    Returns
    -------
    Path, or None
        The bundle; None if there is nothing new.

    Raises
    ------
    FleetError
        The repository cannot be reached or is not to be believed; the message says why.
    """
    try:
        first = root.read_bytes()
    except OSError as error:
        raise FleetError(f"TRIAGE_FLEET_ROOT {root} cannot be read: {error.strerror}") from error
    base = url.rstrip("/")
    try:
        for each in (METADATA, TARGETS):
            make_folder(folder / each)
        updater = Updater(
            str(folder / METADATA),
            f"{base}/{METADATA}/",
            str(folder / TARGETS),
            f"{base}/{TARGETS}/",
            config=UpdaterConfig(app_user_agent="cxr-triage"),
            bootstrap=first,
        )
        updater.refresh()
        info = updater.get_targetinfo(target(ring))
        if info is None or updater.find_cached_target(info) is not None:
            return None
        if info.length > MAX_BYTES + 2 * MAX_MANIFEST:
            raise FleetError(f"{url} offers {info.length} bytes, which is no model version")
        return Path(updater.download_target(info))
    except (exceptions.RepositoryError, exceptions.DownloadError) as error:
        told = next(text for kind, text in _TOLD if isinstance(error, kind))
        raise FleetError(f"the fleet's repository {url} {told} ({error})") from error
    except OSError as error:
        raise FleetError(f"{folder} cannot be written: {error.strerror}") from error


_TOLD: tuple[tuple[type[Exception], str], ...] = (
    (
        exceptions.ExpiredMetadataError,
        "is not renewed any more: see whether this clock is right, then ask who keeps it from us",
    ),
    (
        exceptions.BadVersionNumberError,
        "goes back to an older state than was seen here: ask the fleet's administrator",
    ),
    (
        exceptions.UnsignedMetadataError,
        "is not signed with the fleet's keys: ask the fleet's administrator",
    ),
    (
        exceptions.LengthOrHashMismatchError,
        "serves a file that is not the one that was signed: try again later",
    ),
    (exceptions.DownloadLengthMismatchError, "serves a file that is too long: try again later"),
    (exceptions.DownloadError, "cannot be reached: try again later"),
    (exceptions.RepositoryError, "is not to be believed: ask the fleet's administrator"),
)
"""What a refusal of python-tuf means here; the first kind that fits."""


def forget(bundle: Path) -> None:
    """Let a bundle that could not be entered be fetched again."""
    bundle.unlink(missing_ok=True)
