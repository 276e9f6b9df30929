"""A real S3 server of the tests' own: OpenStack Swift with its S3 API, from Debian.

Durable on a folder, with fsync, one replica, on loopback; it ends like a machine that lost its
power, and starts again with what it had.
"""

import datetime as dt
import getpass
import os
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
from obstore.store import S3Store

from tests.conftest import free_port, wait_for

KEY, SECRET = "testing:triage", "for-tests-only"
BUCKET = "triage"

_COMMON = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
workers = 0
log_level = ERROR
log_address = /dev/null
"""

_PROXY = """
[pipeline:main]
pipeline = catch_errors cache s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
dns_compliant_bucket_names = false
check_bucket_owner = false
[filter:slo]
use = egg:swift#slo
[filter:tempauth]
use = egg:swift#tempauth
user_testing_triage = {secret} .admin
"""

_RINGS = """
import sys
from swift.common.ring import RingBuilder
for kind, port in (told.split("=") for told in sys.argv[2:]):
    rings = RingBuilder(4, 1, 1)
    at = {"region": 1, "zone": 1, "device": "sda", "weight": 1.0, "meta": ""}
    for use in ("", "replication_"):
        at |= {f"{use}ip": "127.0.0.1", f"{use}port": int(port)}
    rings.add_dev(at)
    rings.rebalance()
    rings.get_ring().save(f"{sys.argv[1]}/{kind}.ring.gz")
"""

_STORAGE = """
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
[{kind}-replicator]
"""


class S3:
    """A Swift of one machine.

    Attributes
    ----------
    folder : Path
    port : int
        Of its S3 API.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        (folder / "devices" / "sda").mkdir(parents=True)
        user = getpass.getuser()
        (folder / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_suffix = tests\n"
            "[storage-policy:0]\nname = one\ndefault = yes\n"
        )
        ports = {kind: free_port() for kind in ("account", "container", "object")}
        for kind, port in ports.items():
            text = _COMMON.format(port=port, user=user, folder=folder)
            (folder / f"{kind}-server.conf").write_text(text + _STORAGE.format(kind=kind))
        told = [f"{kind}={port}" for kind, port in ports.items()]
        # The system's Python: Swift is installed there.
        subprocess.run(["/usr/bin/python3", "-c", _RINGS, str(folder), *told], check=True)
        text = _COMMON.format(port=self.port, user=user, folder=folder)
        (folder / "proxy-server.conf").write_text(text + _PROXY.format(secret=SECRET))

    @property
    def url(self) -> str:
        """Of its bucket, as TRIAGE_SPOOL_URL has it."""
        return f"s3://{BUCKET}"

    @property
    def settings(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start it, and have the bucket."""
        for kind in ("account", "container", "object", "proxy"):
            line = [f"/usr/bin/swift-{kind}-server", str(self.folder / f"{kind}-server.conf")]
            with (self.folder / "log").open("ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        line,
                        stdout=log,
                        stderr=log,
                        env={"PATH": os.environ["PATH"]},
                        start_new_session=True,
                    )
                )
        wait_for(self._has_bucket, 120.0)

    def kill(self) -> None:
        """End it as losing power does."""
        for process in self._processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()

    def pause(self) -> None:
        """Let it answer nobody."""
        for process in self._processes:
            os.killpg(process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again."""
        for process in self._processes:
            os.killpg(process.pid, signal.SIGCONT)

    def _has_bucket(self) -> bool:
        """Make it, which takes all four; by a request that obstore signs, and has none itself."""
        root = S3Store(
            "none",
            endpoint=f"http://127.0.0.1:{self.port}",
            access_key_id=KEY,
            secret_access_key=SECRET,
            region="us-east-1",
            virtual_hosted_style_request=True,
            client_options={"allow_http": True},
        )
        url = obstore.sign(root, "PUT", BUCKET, dt.timedelta(minutes=1))
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=30).close()
        except urllib.error.HTTPError as error:
            with error:
                return error.code == 409  # it is there, when started again
        except OSError:
            return False
        return True


@contextmanager
def s3_server() -> Iterator[S3]:
    """A running server with an empty bucket."""
    with tempfile.TemporaryDirectory(prefix="triage-s3-") as folder:
        server = S3(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()
