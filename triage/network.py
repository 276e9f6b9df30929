"""A model version's network, compiled by OpenVINO. No TensorFlow here."""

import sys
from importlib import import_module
from types import ModuleType

import numpy as np

from triage.assessment import Assessor
from triage.errors import ModelError
from triage.markers import CORNER_MARKERS, MASKED, without_markers
from triage.novelty import NOVELTY, Novelty
from triage.pixels import SIDE, Array, fingerprint
from triage.quality import QUALITY, Quality
from triage.registry import EXPORTED, ModelVersion
from triage.scoring import Evidence, Score


def openvino() -> ModuleType:
    """OpenVINO, without its telemetry.

    Left alone, ``import openvino`` forks a child that reports to the vendor over the
    internet and writes to the user's home. A process beside a PACS does neither: where
    the telemetry package cannot be imported, OpenVINO does without.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_module("openvino")


class Network:
    """A :class:`triage.scoring.Scorer` on the CPU.

    Parameters
    ----------
    model : ModelVersion
    threads : int, optional
        Of OpenVINO; as many as there are cores otherwise.

    Raises
    ------
    ModelError
        It was trained on arrays of another fingerprint, or cannot be compiled.
    """

    def __init__(self, model: ModelVersion, threads: int | None = None) -> None:
        if model.pixel_fingerprint != fingerprint():
            raise ModelError(
                f"model {model.version} scores arrays of fingerprint {model.pixel_fingerprint}, "
                f"this program makes {fingerprint()}: use a model trained with this program"
            )
        self._model = model
        self._masks_markers = model.description.get(CORNER_MARKERS) == MASKED
        ov = openvino()
        try:
            core = ov.Core()
            network = core.read_model(model.folder / EXPORTED)
            network.reshape([1, SIDE, SIDE, 1])
            compiled = core.compile_model(
                network,
                "CPU",
                # Left alone, OpenVINO computes in bfloat16 where the CPU can, and then
                # differs from the network that the threshold was chosen on.
                {
                    "INFERENCE_PRECISION_HINT": "f32",
                    "PERFORMANCE_HINT": "LATENCY",
                    # Left alone, OpenVINO binds its threads to the first cores: two processes
                    # of one thread each then share one core, and the other does nothing.
                    "ENABLE_CPU_PINNING": False,
                    **({} if threads is None else {"INFERENCE_NUM_THREADS": threads}),
                },
            )
        except RuntimeError as error:
            raise ModelError(
                f"model {model.version} cannot be compiled: {str(error).splitlines()[0]}"
            ) from error
        self._request = compiled.create_infer_request()
        outputs = {len(output.partial_shape): output for output in compiled.outputs}
        self._probability, self._evidence = outputs[2], outputs.get(4)

    @property
    def model_version(self) -> str:
        """The name of the model version."""
        return self._model.version

    def score(self, array: Array) -> Score:
        """Score one array; a version that was trained without corner markers sees none.

        Parameters
        ----------
        array : ndarray of float32, shape (256, 256), 0.0 to 1.0
        """
        score, _ = self.explained(array)
        return score

    def explained(self, array: Array) -> tuple[Score, Evidence | None]:
        """Score one array; with the evidence by place, if the network gives it.

        Parameters
        ----------
        array : ndarray of float32, shape (256, 256), 0.0 to 1.0
        """
        if self._masks_markers:
            array = without_markers(array)
        outputs = self._request.infer([array.reshape(1, SIDE, SIDE, 1)])
        # float32 rounding may leave a sigmoid a hair above 1.
        probability = float(np.clip(outputs[self._probability][0, 0], 0.0, 1.0))
        score = Score(probability, self._model.threshold, self._model.version)
        evidence = self._evidence
        return score, None if evidence is None else outputs[evidence][0, :, :, 0].copy()


def assessor(model: ModelVersion, *, warn_outside: bool, threads: int | None = None) -> Assessor:
    """A model version, compiled, with all that it scores with.

    Parameters
    ----------
    model : ModelVersion
    warn_outside : bool
        Score patients outside the population with a note.
    threads : int, optional
        As :class:`Network` takes them.

    Raises
    ------
    ModelError
        It does not fit this program, or cannot be compiled.
    """
    quality = None
    if {NOVELTY, QUALITY} <= set(model.description["files"]):
        quality = Quality.load(model.folder / QUALITY, Novelty.load(model.folder / NOVELTY))
    return Assessor(Network(model, threads), model.population, quality, warn_outside)
