"""The obvious worker, a peer: what one would write in an afternoon.

    python -m tests.benchmarks.obvious PORT FOLDER

A pynetdicom handler decodes with ``pixel_array``, resizes with Pillow and calls
``keras.predict`` in place, with the weights of our champion. To its advantage it keeps no file
and no row, looks neither at the header nor at what the picture shows, and its PDUs are of 128
KB. A line in FOLDER/scored tells each score; nothing is synced to the disk.

Orthanc's Python plugin runs :class:`Obvious`, too (see ``orthanc_plugin.py``).
"""

import os
import sys
import threading
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import DigitalXRayImageStorageForPresentation, Verification


class Obvious:
    """Scores data sets with Keras.

    Parameters
    ----------
    scored : Path
        Where a line is written for each.
    """

    def __init__(self, scored: Path) -> None:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        from training.exported import restore
        from triage.app import BUNDLED
        from triage.registry import ModelVersion

        folder = max(BUNDLED.glob("*/model.json")).parent
        architecture = ModelVersion.load(folder).description["architecture"]
        self._network, self._scored = restore(architecture, folder), scored
        self._turn = threading.Lock()  # Keras predicts for one thread at a time

    def __call__(self, dataset: Dataset) -> None:
        """Score it, and write its UID and the probability down."""
        values = dataset.pixel_array.astype(np.float32)
        values /= (1 << dataset.BitsStored) - 1
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            values = 1.0 - values
        small = np.asarray(Image.fromarray(values).resize((256, 256), Image.Resampling.BILINEAR))
        with self._turn:
            found = self._network.predict(small[np.newaxis, :, :, np.newaxis], verbose=0)
            with self._scored.open("a") as file:
                file.write(f"{dataset.SOPInstanceUID} {float(found[0, 0]):.4f}\n")


def main(port: int, folder: Path) -> None:
    """Serve until killed."""
    obvious = Obvious(folder / "scored")

    def store(event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        obvious(dataset)
        return 0x0000

    ae = AE("OBVIOUS")
    ae.maximum_pdu_size = 131_072
    ae.add_supported_context(Verification)
    ae.add_supported_context(DigitalXRayImageStorageForPresentation)
    ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, store)])


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
