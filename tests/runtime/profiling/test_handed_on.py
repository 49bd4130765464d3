"""What nodes hand to each other, beside what ONNX Runtime says of the graph that it runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lladav.export import ExportConfig, export
from lladav.handed_on import handed_on
from lladav.linear_layers import Numbers
from lladav.manifest import CPU_DENOISER
from lladav.memory_plan import Sizes
from lladav.products import PassName
from lladav.runtime.denoiser import HostWindow
from lladav.runtime.embedding import EmbeddingTable
from lladav.runtime.sessions import open_session

BYTES = {"float": 4, "int64": 8, "bool": 1, "int8": 1, "uint8": 1}
MULTIPLIES = {"MatMul", "FusedMatMul", "MatMulIntegerToFloat"}
MOVES_NOTHING = {"If", "Reshape", "Shape", "Unsqueeze"}


@pytest.mark.parametrize("form", [{}, {"quantize": "w8", "quantize_head": True}, {"prompt_kv": "int8"}])
def test_handed_on_is_what_nodes_read_and_write(tiny_checkpoint: Path, tmp_path: Path, form: dict[str, Any]) -> None:
    bundle = export(tiny_checkpoint, tmp_path / "bundle", ExportConfig(dtype="fp32", verify=False, **form))
    sizes, numbers = Sizes(1, 256, 32, 0), Numbers.of(bundle.manifest, cpu=True)
    session = open_session(bundle, CPU_DENOISER, 1, tmp_path / "nodes")
    window = HostWindow(session, bundle.manifest, EmbeddingTable.of(bundle), (1, 256, 32), True, 1)
    window.lay_out([256], 32)
    rows = window.canvas_start + np.arange(32)
    window.refresh(rows)
    window.step(rows)
    events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    runs = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run"]
    kinds: tuple[PassName, ...] = ("refresh", "step")
    for kind, (began, ended) in zip(kinds, runs, strict=True):
        moved = sum(
            BYTES[element] * math.prod(shape)
            for event in events
            if event["name"].endswith("_kernel_time") and began <= event["ts"] < ended
            if event["args"]["op_name"] not in MULTIPLIES | MOVES_NOTHING
            for side in ("input_type_shape", "output_type_shape")
            for value in event["args"][side]
            for element, shape in value.items()
        )
        # Positions, rows and tables of angles are left out.
        assert handed_on(bundle.manifest, kind, sizes, numbers) == pytest.approx(moved, rel=0.05)
