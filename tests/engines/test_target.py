"""Targets are data, and the data is whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lladav.engines.target import Target, load_target, target_names, version_key
from lladav.errors import EngineError, OptionError

FOLDER = Path(__file__).resolve().parents[2] / "engines" / "targets"


def test_names() -> None:
    orin = ("orin-agx-32", "orin-agx-64", "orin-nano-8", "orin-nx-16")
    assert target_names() == ("a100", "h100", "h200", "l4", *orin, "rtx-30", "rtx-40", "rtx-50", "thor")


@pytest.mark.parametrize("name", target_names())
def test_every_file_loads_and_says_where_each_value_comes_from(name: str) -> None:
    target = load_target(name)
    described = set(Target.model_fields) - {"name", "title", "sources"}
    assert target.sources.keys() == described
    assert all(target.sources.values())
    # Eight-bit rates are twice those of sixteen bits, or four times where these accumulate in float32 at half rate.
    assert round(target.int8_tops / target.fp16_tflops, 1) in (2.0, 4.0)
    assert {"fp16", "bf16"} <= set(target.precisions)


def test_what_a_compute_capability_implies() -> None:
    for name in target_names():
        target = load_target(name)
        assert ("fp8" in target.precisions) == (version_key(target.compute_capability) >= (8, 9)), name
        assert target.splits_head == name.startswith("orin"), name
        assert (target.library == "tensorrt_rtx") == name.startswith("rtx"), name


def test_dense_rates_follow_from_the_boards_clocks() -> None:
    assert load_target("orin-agx-64").int8_tops == pytest.approx(16 * 1.301 * 4096 / 1e3, rel=1e-3)
    assert load_target("rtx-50").fp16_tflops == pytest.approx(170 * 2.407 * 512 / 1e3, rel=1e-3)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown key": (lambda t: t.update(color="green"), "color: Extra inputs are not permitted"),
    "missing key": (lambda t: t.pop("bandwidth_gb_s"), "bandwidth_gb_s: Field required"),
    "missing source": (lambda t: t["sources"].pop("memory_gb"), "sources are needed for exactly"),
    "no memory": (lambda t: t.update(memory_gb=0), "memory_gb"),
    "fp8 on Orin": (lambda t: t["precisions"].append("fp8"), r"fp8 needs compute capability 8\.9"),
    "another name": (lambda t: t.update(name="orin"), "of another name, orin"),
    "another library": (lambda t: t.update(library="tensorrt_lean"), "library"),
}


@pytest.mark.parametrize("name", EDITS)
def test_file_that_is_wrong(tmp_path: Path, name: str) -> None:
    edit, message = EDITS[name]
    values = json.loads((FOLDER / "orin-agx-64.json").read_text("utf-8"))
    edit(values)
    path = tmp_path / "orin-agx-64.json"
    path.write_text(json.dumps(values), "utf-8")
    with pytest.raises(EngineError, match=message):
        Target.read(path)


def test_file_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "thor.json"
    path.write_text("{")
    with pytest.raises(EngineError, match="cannot be read as JSON"):
        Target.read(path)


def test_unknown_name() -> None:
    with pytest.raises(OptionError, match=r"no target '\.\./thor'") as caught:
        load_target("../thor")
    assert "thor" in caught.value.cure


def test_versions() -> None:
    versions = load_target("orin-nx-16").versions
    assert [v for v in ("8.6", "10.2.9", "10.3.0", "10.16.1", "11.0.0") if v in versions] == ["10.3.0", "10.16.1"]
