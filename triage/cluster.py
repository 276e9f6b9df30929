"""A Ray cluster, for the back file and for training on more machines."""

import os
import socket
from types import ModuleType

from triage.errors import ServiceError, TriageError

LOCAL = "local"
"""The address of a cluster of this machine alone, which ends with the process."""

_INSTALL = 'install Ray on this machine: pip install "cxr-triage[ray]"'


def connect(address: str, workers: int | None = None) -> ModuleType:
    """Ray, connected. Nothing is reported to its makers.

    Parameters
    ----------
    address : str
        ``local``, ``auto`` (the cluster that runs on this machine), ``HOST:PORT`` of a head
        node, or ``ray://HOST:PORT`` of one that is elsewhere.
    workers : int, optional
        Of a local cluster; its cores otherwise.

    Raises
    ------
    ServiceError
        Ray is not installed, or the cluster cannot be reached.
    """
    # Before Ray is imported: left alone, it tells its makers about each cluster.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address == LOCAL:
        # Ray's name for a machine that is no part of a cluster: all its doors are on loopback.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Workers are as nice as the command: Ray's own 15 more leave them next to nothing
        # beside anything else.
        os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ImportError as error:
        raise ServiceError(f"there is no Ray here: {_INSTALL}") from error
    settings: dict[str, object] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        settings |= {"num_cpus": workers, "include_dashboard": False}
        settings["_node_ip_address"] = "127.0.0.1"
    elif address != "auto":
        _knock(address)
    try:
        ray.init(address, ignore_reinit_error=True, **settings)
    # A boundary: Ray raises what it likes, gRPC's errors among it.
    except Exception as error:
        told = " ".join(str(error).split())[:200]
        raise ServiceError(
            f"the Ray cluster at {address} cannot be used ({type(error).__name__}: {told}): is its "
            "head node running there, with this version of Ray and Python?"
        ) from error
    known: ModuleType = ray
    return known


def _knock(address: str) -> None:
    """Whether somebody listens there: Ray itself waits for minutes, and then ends the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ServiceError(
            f"{address!r} is no Ray cluster: write local, auto, HOST:PORT or ray://HOST:PORT"
        )
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except OSError as error:
        raise ServiceError(
            f"the Ray cluster at {address} cannot be reached ({error}): is its head node running "
            "there?"
        ) from error


def own(cause: BaseException) -> TriageError:
    """What broke in a worker, as an error of ours."""
    if isinstance(cause, TriageError):
        return cause
    return ServiceError(f"a Ray worker cannot work ({type(cause).__name__}: {cause})")
