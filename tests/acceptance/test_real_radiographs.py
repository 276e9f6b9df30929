"""Real radiographs, wrapped and sent by programs that are not ours.

Runs where the Kermany data set is at hand: beside the checkout, or where CXR_DATA says.
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from sample_dicom.draw import Exam, as_dx, write
from tests.conftest import ROOT, Service, wait_for
from triage.network import Network
from triage.pixels import normalize, normalize_file
from triage.registry import ModelVersion
from triage.worklist import State

DATA = Path(os.environ.get("CXR_DATA", ROOT.parent / "shared" / "data" / "kermany"))
PICTURES = sorted((DATA / "fullres").glob("*/*.jpeg"))
BUNDLED = ROOT / "triage" / "bundled"

pytestmark = pytest.mark.skipif(not PICTURES, reason="the Kermany radiographs are not at hand")

# One context per syntax: then no acceptor makes the sender choose between them.
STORESCU_PROFILE = r"""
[[TransferSyntaxes]]
[Baseline]
TransferSyntax1 = JPEGBaseline
[Progressive]
TransferSyntax1 = 1.2.840.10008.1.2.4.55
[[PresentationContexts]]
[CR]
PresentationContext1 = ComputedRadiographyImageStorage\Baseline
PresentationContext2 = ComputedRadiographyImageStorage\Progressive
[[Profiles]]
[Default]
PresentationContexts = CR
"""


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The pictures as CR objects, made by DCMTK's img2dcm."""
    folder = tmp_path_factory.mktemp("img2dcm")
    keys = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1",
        "Modality": "CR",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "AP",
        "PatientAge": "003Y",
    }
    options = [part for key, value in keys.items() for part in ("-k", f"{key}={value}")]
    made = []
    for picture in PICTURES:
        target = folder / f"{picture.stem}.dcm"
        subprocess.run(["img2dcm", "-q", *options, picture, target], check=True)
        made.append(target)
    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The pictures as 12-bit DX objects, made by our builder."""
    folder = tmp_path_factory.mktemp("dx")
    made = []
    for number, picture in enumerate(PICTURES):
        with Image.open(picture) as image:
            grey = np.asarray(image.convert("L"), np.float64) / 255.0
        target = folder / f"{picture.stem}.dcm"
        write(as_dx(grey, Exam(number + 1), view="AP", bits=12), target)
        made.append(target)
    return made


def dcmsend(service: Service, files: list[Path], _folder: Path) -> None:
    """Send with DCMTK's dcmsend."""
    command = ["dcmsend", "-aec", "TRIAGE", "127.0.0.1", str(service.port)]
    subprocess.run([*command, *files], check=True)


def storescu(service: Service, files: list[Path], folder: Path) -> None:
    """Send with DCMTK's storescu."""
    profile = folder / "storescu.cfg"
    profile.write_text(STORESCU_PROFILE)
    jpeg = ["-xf", str(profile), "Default"]
    plain = dcmread(files[0], stop_before_pixels=True).file_meta.TransferSyntaxUID.is_encapsulated
    command = ["storescu", *(jpeg if plain else []), "-aec", "TRIAGE", "127.0.0.1"]
    subprocess.run([*command, str(service.port), *files], check=True)


def data_set(path: Path) -> bytes:
    """A file's bytes after group 2 (PS3.10 7.1)."""
    content = path.read_bytes()
    return content[144 + int.from_bytes(content[140:144], "little") :]


@pytest.mark.parametrize("source", ["wrapped", "built"])
@pytest.mark.parametrize("send", [dcmsend, storescu])
def test_every_real_radiograph_is_kept_byte_for_byte_and_scored(
    source: str,
    send: Callable[[Service, list[Path], Path], None],
    service: Service,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """80 sent, 80 rows, all SCORED, and the spool has each data set as it was sent."""
    files: list[Path] = request.getfixturevalue(source)
    send(service, files, tmp_path)
    worklist = service.worklist()
    wait_for(lambda: not worklist.counts()[State.RECEIVED], seconds=120)
    items = {item.sop_instance_uid: item for item in worklist.items()}
    assert [item.reason for item in items.values() if item.state is not State.SCORED] == []
    assert len(items) == len(files) == 80
    for file in files:
        item = items[str(dcmread(file, stop_before_pixels=True).SOPInstanceUID)]
        kept = service.home / "spool" / "instances" / item.digest[:2] / f"{item.digest}.dcm"
        assert data_set(kept) == data_set(file)
    # Those drawn to be read blind rank like flagged ones, so as not to tell.
    ahead = [bool(item.flagged or item.blind) for item in worklist.items()]
    assert ahead == sorted(ahead, reverse=True), "flagged or drawn first"
    assert any(item.flagged for item in items.values())


def test_one_picture_is_one_array_however_it_is_wrapped(
    wrapped: list[Path], built: list[Path]
) -> None:
    """File, img2dcm's CR and our 12-bit DX differ by no more than rounding.

    But for a line at the very edge: whether it is flat enough to be a margin can turn on
    the rounding, which showed in one column of one picture of the 80.
    """
    for picture, cr, dx in zip(PICTURES, wrapped, built, strict=True):
        array = normalize_file(picture)
        assert np.abs(normalize(dcmread(cr)).array - array).mean() < 2 / 255
        assert np.quantile(np.abs(normalize(dcmread(dx)).array - array), 0.999) < 1 / 255


def test_the_exported_network_agrees_with_keras_on_real_radiographs() -> None:
    """Largest difference of probabilities below 1e-3 on all 80."""
    from training.exported import restore

    for description in sorted(BUNDLED.glob("*/model.json")):
        model = ModelVersion.load(description.parent)
        keras_network = restore(model.description["architecture"], description.parent)
        network = Network(model)
        arrays = np.stack([normalize_file(picture) for picture in PICTURES])
        expected = keras_network.predict(arrays[..., np.newaxis], batch_size=8, verbose=0)[:, 0]
        ours = np.array([network.score(array).probability for array in arrays])
        assert np.abs(ours - expected).max() < 1e-3
