"""What a browser is sent of a radiograph: every grey that was stored, and the heat map.

A picture goes as its grey values, one after the other, row by row, in one byte each or in
two (the lower one first), with a description in the header :data:`DESCRIPTION`; the viewer
windows it. Why so, and what else was measured: ``docs/decisions/0070``.
"""

import io
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from triage.errors import ModelError
from triage.explanation import explain, full_heat, overlay
from triage.pixels import fingerprint, normalize, viewing
from triage.registry import ModelVersion, Registry
from triage.scoring import Scorer
from triage.spool import Spool

DESCRIPTION = "X-Picture"
"""The header that describes the bytes: JSON with ``rows``, ``columns``, ``bytes`` (of a
pixel), ``black`` and ``white`` (the default window), ``offset``, ``scale`` and ``aspect``, as
:class:`triage.pixels.Viewing` has them."""

LEGEND = "X-Heat-Map-Legend"
"""The header that says what heat means, and how much of it has the hottest colour."""

HEAT_SIDE = 512
"""Columns and rows of a painted heat map; the viewer stretches it over the picture."""

KEPT = 256
"""So many painted heat maps are kept in memory; one is about 30 KB."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A picture on its way to a browser.

    Attributes
    ----------
    description : str
        Of the header :data:`DESCRIPTION`.
    content : memoryview
        Bytes.
    """

    description: str
    content: memoryview


@dataclass(frozen=True, slots=True)
class Heat:
    """A painted heat map.

    Attributes
    ----------
    png : bytes
        Colours and opacity, 512 x 512.
    legend : str
        What heat means, and how much of it has the hottest colour; ASCII.
    """

    png: bytes
    legend: str


class Pictures:
    """Pictures and heat maps of kept instances.

    Parameters
    ----------
    spool : Spool
    models : Registry
    scorer : callable
        From a model version to its network.
    """

    def __init__(
        self, spool: Spool, models: Registry, scorer: Callable[[ModelVersion], Scorer]
    ) -> None:
        self._spool, self._models, self._load = spool, models, scorer
        self._maps: OrderedDict[tuple[str, str], Heat] = OrderedDict()
        self._scorer: Scorer | None = None
        self._one_at_a_time = threading.Lock()

    def picture(self, digest: str) -> Sent:
        """A kept instance as the viewer takes it.

        Raises
        ------
        SpoolError
            Its file cannot be read.
        PixelsError
            It has no picture that can be shown.
        """
        view = viewing(self._spool.instance(digest))
        rows, columns = view.values.shape
        description = {
            "rows": rows,
            "columns": columns,
            "bytes": view.values.itemsize,
            "black": round(view.black, 4),
            "white": round(view.white, 4),
            "offset": view.offset,
            "scale": view.scale,
            "aspect": view.aspect,
        }
        little = view.values.astype(view.values.dtype.newbyteorder("<"), copy=False)
        return Sent(json.dumps(description), np.ascontiguousarray(little).data.cast("B"))

    def heat_map(self, digest: str, model_version: str) -> Heat:
        """Where the score of a model version comes from; see :mod:`triage.explanation`.

        Made once and kept. Two are never made at once: the cores are the scoring worker's.

        Raises
        ------
        ModelError
            The version is not here any more, or made for other arrays than ours.
        SpoolError, PixelsError
            As :meth:`picture`.
        """
        key = digest, model_version
        with self._one_at_a_time:
            if key not in self._maps:
                self._maps[key] = self._painted(digest, model_version)
                if len(self._maps) > KEPT:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(key)
            return self._maps[key]

    def _painted(self, digest: str, model_version: str) -> Heat:
        scorer = self._scorer_of(model_version)
        heat_map = explain(scorer, normalize(self._spool.instance(digest)).array)
        file = io.BytesIO()
        Image.fromarray(overlay(heat_map, (HEAT_SIDE, HEAT_SIDE)), "RGBA").save(file, "PNG")
        return Heat(file.getvalue(), f"{heat_map.meaning}; brightest is {full_heat(heat_map):.2f}")

    def _scorer_of(self, model_version: str) -> Scorer:
        """The network of a version, kept while the same one is asked for."""
        if self._scorer is None or self._scorer.model_version != model_version:
            model = self._models.version(model_version)
            if model.pixel_fingerprint != fingerprint():
                raise ModelError(
                    f"model version {model_version} was made for other arrays than this program "
                    "makes: there is no heat map of its scores any more"
                )
            self._scorer = self._load(model)
        return self._scorer
