"""The benchmark of quantised bundles: what is not a matter of time."""

from __future__ import annotations

import pytest

from benchmarks.make_full_size import LAYERS, real_geometry, total_bytes
from benchmarks.quantized import FORMS, HALF, STEP, size_table, sizes, slice_of_the_real_model, speed_table
from lladav.costs import weight_bytes
from lladav.geometry import Geometry
from lladav.linear_layers import Numbers


def test_sizes_are_of_the_real_model() -> None:
    files = sizes()
    found = {form: sum(own.values()) for form, own in files.items()}
    assert abs(found["fp16"] / total_bytes(real_geometry()) - 1) < 1e-3
    assert found["fp16"] > found["w8"] == found["w8a8"] > found["w4"]
    head = real_geometry().language
    for form in ("w8", "w8a8", "w4"):
        saved = found[form] - found[f"{form} --quantize-head"]
        assert saved == pytest.approx(head.vocab_rows * head.hidden_size, rel=2e-3)
    (line,) = (line for line in size_table(files) if "`fp16`" in line)
    assert f"**{found['fp16'] / 1e9:.2f}**" in line


def test_slice_has_its_share_of_the_real_weights() -> None:
    fp16 = Numbers("fp16")
    whole = weight_bytes(real_geometry(), fp16)["denoiser"]
    part = weight_bytes(Geometry(language=slice_of_the_real_model(), vision=None), fp16)["denoiser"]
    assert abs(part * LAYERS / whole - 1) < 1e-3


def test_speed_table_shows_every_form_of_every_model() -> None:
    seconds = {"fp32": [0.2, 0.3, 0.2], "integers": [0.1, 0.1, 0.1]}
    own = {kind: {"seconds": seconds, "ratio": ratio} for kind, ratio in ((STEP, 2.0), (HALF, 1.5))}
    machine = {"processor": "one", "onnxruntime": "1"}
    results = {"machine": machine, "rounds": 3, "speed": {"small": dict.fromkeys(FORMS, own)}}
    rows = list(speed_table(results))
    assert [row for row in rows if "| 2.00 | 1.50 |" in row] == [f"| `{form}` | 2.00 | 1.50 |" for form in FORMS]
    assert rows[-1] == "| fp32 takes | 200 ms | 200 ms |"
