"""Records of engines that no library built."""

from __future__ import annotations

import hashlib
from typing import Any

from lladav.manifest import FileEntry
from lladav.records import EngineRecord


def engine_record(
    graph: str = "denoiser", target: str = "rtx-40", plan: bytes = b"plan", **values: Any
) -> EngineRecord:
    """The record of a plan with these contents; `values` take the place of those of an RTX 40 card in fp16."""
    path = f"engines/{target}/{graph}.plan"
    usual = {
        "precision": "fp16",
        "library": "tensorrt_rtx",
        "library_version": "1.7.1.116",
        "compute_capability": "8.9",
        "device": "",
        "bundle": "0" * 64,
        "profiles": (),
        "activations": (),
        "plan": FileEntry(path=path, bytes=len(plan), sha256=hashlib.sha256(plan).hexdigest()),
    }
    return EngineRecord(graph=graph, target=target, **usual | values)
