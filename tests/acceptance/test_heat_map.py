"""Does the bundled model's heat map depend on the picture and on what was learned?"""

import numpy as np
import pytest

from tests.acceptance.test_real_radiographs import BUNDLED, DATA, PICTURES
from training.dataset import read_folder
from triage.explanation import explain
from triage.network import Network
from triage.pixels import normalize_file
from triage.registry import ModelVersion

pytestmark = pytest.mark.skipif(not PICTURES, reason="the Kermany radiographs are not at hand")

ILL = [picture for picture in PICTURES if picture.parent.name == "PNEUMONIA"]


@pytest.fixture(scope="module")
def model() -> ModelVersion:
    """The bundled version."""
    return ModelVersion.load(max(BUNDLED.glob("*/model.json")).parent)


def test_heat_lies_in_the_chest_more_than_by_chance(model: ModelVersion) -> None:
    """Of the heat in pneumonias, more than half lies in the inner four ninths."""
    network = Network(model)
    shares = []
    for picture in ILL:
        heat = explain(network, normalize_file(picture)).heat
        assert heat.shape == (6, 6)
        if heat.any():
            shares.append(heat[1:5, 1:5].sum() / heat.sum())
    assert len(shares) > 30
    assert np.mean(shares) > 0.5 > 16 / 36


def test_covering_the_hottest_place_takes_more_away_than_the_coldest(model: ModelVersion) -> None:
    """On pneumonias of patients that it never saw.

    A map of six by six places points a little: most of the time, and not always.
    """
    if not (DATA / "train").is_dir():
        pytest.skip("the training radiographs are not at hand")
    snapshot, network = read_folder(DATA), Network(model)
    if snapshot.digest != model.description["data"]["snapshot"]:
        pytest.skip("these are other radiographs than the model was trained on")
    rows = snapshot.never_seen(model.description)
    ill = rows[snapshot.labels[rows] == 1]
    inner = [(row, column) for row in range(1, 5) for column in range(1, 5)]
    falls = []
    for row in np.random.default_rng(1).choice(ill, 150, replace=False):
        array = normalize_file(snapshot.cases[row].path)
        _, evidence = network.explained(array)
        assert evidence is not None
        order = sorted(inner, key=lambda place: float(evidence[place]))
        pair = []
        for place in (order[-1], order[0]):
            covered = array.copy()
            top, left = (int(number * 256 / 6) for number in place)
            box = covered[top : top + 42, left : left + 42]
            box[...] = array.mean()
            after = network.explained(covered)[1]
            assert after is not None
            pair.append(float(evidence.mean() - after.mean()))
        falls.append(pair)
    hottest, coldest = np.array(falls).T
    assert np.mean(hottest > coldest) > 0.6
    assert hottest.mean() > 0 > coldest.mean()


def test_random_weights_give_other_maps(model: ModelVersion) -> None:
    """The sanity check of Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018.

    From the twelfth block up, all weights but depthwise kernels are shuffled; a map that is
    only an edge detector would not notice.
    """
    import keras

    from training.efficientnet import EVIDENCE
    from training.exported import restore

    network = restore(model.description["architecture"], model.folder)
    maps = keras.Model(network.inputs, network.get_layer(EVIDENCE).output)
    arrays = np.stack([normalize_file(picture) for picture in ILL])[..., np.newaxis]
    learned = maps.predict(arrays, batch_size=8, verbose=0).reshape(len(ILL), -1)
    random = np.random.default_rng(1)
    last = {"block12", "block13", "block14", "block15", "head", EVIDENCE}
    for layer in network.layers:
        part, _, kind = layer.name.partition("_")
        if part not in last or kind in {"depthwise", "add"}:
            continue
        weights = layer.get_weights()
        layer.set_weights([random.permutation(w.ravel()).reshape(w.shape) for w in weights])
    shuffled = maps.predict(arrays, batch_size=8, verbose=0).reshape(len(ILL), -1)
    alike = [np.corrcoef(one, other)[0, 1] for one, other in zip(learned, shuffled, strict=True)]
    assert abs(np.mean(alike)) < 0.25
