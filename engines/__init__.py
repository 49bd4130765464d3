"""Compiled engines: what a vendor's builder makes of a bundle's graphs.

An engine stands in for a graph of the same bundle: it takes the same inputs, gives the same
outputs, and is bound to the GPU and to the library that it was built for. Robot side: nothing
here imports torch, onnx or transformers, and a vendor's library only when it is used.
"""

from __future__ import annotations

from lladav.engines.builder import build
from lladav.engines.execution import load_plan
from lladav.engines.prediction import Prediction, predict
from lladav.engines.preflight import check_engines, find_engines
from lladav.engines.progress import Progress
from lladav.engines.target import Target, load_target, target_names
from lladav.records import EngineRecord, read_records

__all__ = [
    "EngineRecord",
    "Prediction",
    "Progress",
    "Target",
    "build",
    "check_engines",
    "find_engines",
    "load_plan",
    "load_target",
    "predict",
    "read_records",
    "target_names",
]
