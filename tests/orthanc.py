"""Orthanc, a PACS that is not ours, asked by its REST interface."""

import json
import subprocess
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.conftest import free_port, wait_for
from triage.errors import TriageError
from triage.send import Destination, echo


class Orthanc:
    """An Orthanc process with a storage of its own, whose AE title is ORTHANC.

    Parameters
    ----------
    folder : Path
        Its files; made if it is not there.
    modalities : mapping of str to Destination, optional
        Whom it knows, by the names in its REST interface.
    settings : mapping, optional
        More of its settings.
    """

    def __init__(
        self,
        folder: Path,
        modalities: Mapping[str, Destination] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.dicom_port, self.http_port, self._folder = free_port(), free_port(), folder
        self._process: subprocess.Popen[bytes] | None = None
        merged = {
            "Name": "PACS",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "DicomAet": "ORTHANC",
            "DicomPort": self.dicom_port,
            "DicomCheckCalledAet": True,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [],
            # Otherwise it remembers that it has an instance, and says Success.
            "OverwriteInstances": False,
            "DicomModalities": {
                name: {"AET": there.ae_title, "Host": there.host, "Port": there.port}
                for name, there in (modalities or {}).items()
            },
            **(settings or {}),
        }
        (folder / "orthanc.json").write_text(json.dumps(merged))

    def start(self, seconds: float = 60.0) -> None:
        """Start it and wait for its C-ECHO."""
        with (self._folder / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["/usr/sbin/Orthanc", str(self._folder / "orthanc.json")], stdout=log, stderr=log
            )
        wait_for(self._answers, seconds)

    def stop(self) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def _answers(self) -> bool:
        try:
            self.get("/system")
            echo(Destination("127.0.0.1", self.dicom_port, "ORTHANC"), timeout=2.0)
        except (OSError, TriageError):
            return False
        return True

    def get(self, path: str) -> Any:
        """GET JSON."""
        return json.loads(self.raw(path))

    def post(self, path: str, body: object) -> Any:
        """POST JSON."""
        return json.loads(self.raw(path, json.dumps(body).encode()))

    def raw(self, path: str, body: bytes | None = None) -> bytes:
        """GET bytes, or POST some."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", body)
        with urllib.request.urlopen(request, timeout=30) as answer:
            content: bytes = answer.read()
            return content

    def instance(self, uid: str) -> str:
        """Its own identifier of an instance."""
        (found,) = (
            instance["ID"]
            for instance in self.get("/instances?expand")
            if instance["MainDicomTags"]["SOPInstanceUID"] == uid
        )
        return str(found)

    def count(self) -> int:
        """How many instances it has."""
        return int(self.get("/statistics")["CountInstances"])
