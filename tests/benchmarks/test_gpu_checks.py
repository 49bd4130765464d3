"""What the checks of `benchmarks.gpu` find, each on the host in place of a GPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from host_device import HostDevice

from benchmarks.gpu import (
    authors_loop,
    caption,
    forms,
    goldens,
    kernels,
    look,
    profiles,
    roofline,
    rtx_loads,
    soak,
    steps,
)
from benchmarks.gpu.finding import CannotRunError, Finding, write
from benchmarks.gpu.rig import Rig
from lladav.bundle import Bundle
from lladav.costs import Rates, weight_bytes
from lladav.linear_layers import Numbers
from lladav.runtime.profiling import Profile

if TYPE_CHECKING:
    from benchmarks.golden import GoldenSet
    from lladav.runtime import Pipeline


def test_rooflines_at_the_measured_rates(bundle: Bundle) -> None:
    weights = weight_bytes(bundle.manifest.geometry, Numbers("fp32"))["denoiser"]
    read = roofline.rooflines(bundle, Rates(bandwidth=1e6, operations=math.inf), 128, 16)
    # The weights, 128 positions of two layers of 32 numbers for keys and as many for values, and 16 rows of logits;
    # inputs are the rest.
    vocabulary = bundle.manifest.geometry.language.vocab_rows
    least = (weights + 128 * 2 * 32 * 2 * 4 + 16 * vocabulary * 4) / 1e3
    assert least < read["step"] < 1.03 * least
    computed = roofline.rooflines(bundle, Rates(bandwidth=math.inf, operations=1e6), 128, 16)
    # 144 positions against 16, and as many rows of logits.
    assert 4 * computed["step"] < computed["refresh"] < 9 * computed["step"]
    slow, fast = (roofline.rooflines(bundle, Rates(1e6, rate), 128, 16)["step"] for rate in (1e3, 1e30))
    assert (slow, fast) == (pytest.approx(1e3 * computed["step"]), read["step"])


def test_products_count_for_nothing_where_they_were_not_measured(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(roofline, "COPIED", 1 << 16)
    rates = roofline.measured_rates(rig.device)
    assert rates.bandwidth > 0
    assert rates.operations == math.inf


def test_bandwidth_counts_reading_and_writing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    free = rig.device.memory()
    monkeypatch.setattr(type(rig.device.event()), "ms_since", lambda *_: 2.0)
    assert roofline.measure_bandwidth(rig.device, size=1000, rounds=4) == pytest.approx(2 * 4 * 1000 / 2e-3)
    assert rig.device.memory() == free


def test_table_of_steps_says_what_is_met() -> None:
    measured = steps.Measured(refresh_ms=30.0, step_ms=6.0, alone_ms=5.98, host_gap_us=20.0, fallbacks=())
    slow = steps.Measured(refresh_ms=30.0, step_ms=6.4, alone_ms=6.3, host_gap_us=100.0, fallbacks=())
    least = {"900+32": {"refresh": 20.0, "step": 4.0}}
    found = {"tensorrt": {"graph": {"900+32": measured}, "plain": {"900+32": slow}}}
    table = steps.table(Rates(4e12, 7e14), least, found)
    assert table.title == "Copies read and write 4000 GB/s; 700 TFLOPS of fp16 products"
    assert table.rows[0] == ("tensorrt", "graph", "900 + 32", "30.00", "1.50", "6.00", "1.50, met", "20, met")
    assert table.rows[1][-2:] == ("1.60, **missed**", "100, **missed**")


def test_look(rig: Rig, bundle: Bundle) -> None:
    found = look.look(rig, bundle)
    assert list(found.figures["backends"]) == ["host"]
    assert [row[:2] for row in found.tables[0].rows] == [("host", "answers"), ("broken", "does not load")]
    assert "build some" in found.tables[0].rows[1][2]


def test_steps(rig: Rig, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "COPIED", 1 << 16)
    found = steps.steps(rig, bundle, prompts=(40,), canvases=(8, 16), count=6)
    own = found.figures["backends"]["host"]
    assert {(name, size) for name, sizes in own.items() for size in sizes} == {
        (name, size) for name in ("graph", "plain", "repeated") for size in ("40+8", "40+16")
    }
    for sizes in own.values():
        for one in sizes.values():
            assert one["step_ms"] > 0
            assert one["host_gap_us"] == pytest.approx(1e3 * (one["step_ms"] - one["alone_ms"]))
            assert one["fallbacks"] == ()
    device = rig.device
    assert isinstance(device, HostDevice)
    # Per canvas refresh and step; none where they are launched plainly; and with the loop of steps.
    assert device.captures_made == 4 + 0 + 6
    assert len(found.tables[0].rows) == 6


def test_caption(rig: Rig, bundle: Bundle) -> None:
    found = caption.caption(rig, bundle, length=8, rounds=1)
    own = found.figures["backends"]["host"]
    # An overview and 2 x 2 crops of 4 x 4 patches, with the newlines of the larger map, and the question.
    assert own["prompt_tokens"] > 5 * 16
    assert own["tokens"] == 8
    assert own["passes"]["refresh"] == 1
    assert own["timings_ms"]["vision_encoder"] > 0, "every picture is new"


def test_profile(rig: Rig, bundle: Bundle, tmp_path: Path) -> None:
    found = profiles.profiles(rig, bundle, tmp_path, length=8, runs=2)
    own = found.figures["backends"]["host"]
    assert own["layers"].keys() == {"refresh", "step", "vision_encoder", "connector"}
    assert all(share > 0 for share in own["layers"].values())
    assert {"weights", "prompt KV", "activations", "vision", "host data"} <= own["memory"].keys()
    assert own["unexplained"] is not None
    assert {"profile.json", "layers.json"} <= {file.name for file in (tmp_path / "profile-host").iterdir()}
    assert "refresh " in found.tables[0].rows[0][1]


def test_sums_of_answers_that_had_no_step(rig: Rig, bundle: Bundle, tmp_path: Path) -> None:
    profiles.profiles(rig, bundle, tmp_path, length=8, runs=2)
    found = Profile.model_validate_json((tmp_path / "profile-host" / "profile.json").read_bytes())
    passes = {name: measured for name, measured in found.passes.items() if name != "step"}
    assert profiles.sums(found.model_copy(update={"passes": passes})).layers.keys() == passes.keys()


def test_forms_are_measured_in_pairs(rig: Rig, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []
    measured = forms.answered

    def answered(pipeline: Pipeline, *arguments: Any) -> float:
        order.append(id(pipeline))
        return measured(pipeline, *arguments)

    monkeypatch.setattr(forms, "answered", answered)
    free = rig.device.memory()
    found = forms.forms(rig, {"fp16": bundle, "w8": bundle}, prompts=(40,), canvases=(8,), count=6, rounds=2)
    assert rig.device.memory() == free
    own = found.figures["backends"]["host"]["w8"]
    assert own.keys() == {"refresh, 40+8", "step, 40+8"}
    assert all(len(pairs["ms"]) == len(pairs["plain_ms"]) == 2 for pairs in own.values())
    plain, integers = order[:2]
    assert order == 2 * [plain, integers, integers, plain, plain, integers]
    assert plain != integers


def test_table_of_forms_says_what_is_slower() -> None:
    fast, slow = forms.Pairs((3.0, 4.0, 9.0), (1.0, 2.0, 3.0)), forms.Pairs((1.0, 1.0), (2.0, 2.0))
    rows = forms.table({"tensorrt": {"w8": {"step, 900+32": fast, "refresh, 900+32": slow}, "w4": "no\nroom"}}).rows
    assert rows[0] == ("tensorrt", "w8", "step, 900 + 32", "4.00", "2.00", "3.00")
    assert rows[1][-1] == "**0.50, slower**"
    assert rows[2] == ("tensorrt", "w4", "does not load", "", "", "no room")


def test_soak(rig: Rig, bundle: Bundle) -> None:
    found = soak.soak(rig, bundle, count=40, prompt=20, canvas=8)
    samples = found.figures["backends"]["host"]
    assert [sample["steps"] for sample in samples] == [8, 16, 24, 32, 40]
    assert {sample["drift"] for sample in samples} == {0.0}
    assert len({sample["device_bytes"] for sample in samples}) == 1
    assert found.tables[0].rows[0][:3] == ("host", "40", "+0 bytes")


def test_drift_and_growth_are_seen() -> None:
    samples = [soak.Sample(10, 100, 1000, 2.0, 0.0), soak.Sample(20, 150, 900, 3.0, 0.5)]
    assert soak.summary(samples) == ("20", "+50 bytes", "-100 bytes", "5.0e-01", "2.00, 3.00")


def test_goldens(rig: Rig, golden_set: GoldenSet) -> None:
    name = "text_8_8_1"
    found = goldens.goldens(rig, golden_set, (name,), "fp32")
    case = found.figures["backends"]["host"][name]
    assert case["picks"] == case["same_token"] == case["same_position"] > 0
    assert found.tables[0].rows[0][3:5] == ("100.00%", "100.00%")


@pytest.mark.usefixtures("compiled_kernels")
def test_kernels_are_compared_by_the_tests(rig: Rig) -> None:
    found = kernels.kernels(rig, (f"{kernels.TESTS}/test_kernels.py", "-m", "not gpu", "-k", "guidance"))
    assert set(found.figures["outcomes"].values()) == {"passed"}
    assert found.tables[0].rows == (("test_kernels", "3", "0", "0"),)
    with pytest.raises(CannotRunError, match="no test was chosen"):
        kernels.kernels(rig, (f"{kernels.TESTS}/test_kernels.py", "-k", "nothing_is_called_so"))


def test_authors_loop_runs_in_the_type_and_on_the_device_of_the_model(bundle: Bundle) -> None:
    torch = pytest.importorskip("torch")
    manifest = bundle.manifest
    loop = authors_loop.random_loop(manifest.geometry, manifest.tokens, torch.bfloat16, compiled=False)
    assert loop._embedding.dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32
    waits: list[None] = []
    prompt = np.random.default_rng(0).standard_normal((12, 32), np.float32)
    assert authors_loop.pass_ms(loop, prompt, 10, lambda: waits.append(None)) > 0
    assert len(waits) == 2 * (authors_loop.WARM_UP + authors_loop.ROUNDS)


def test_authors_passes_stand_beside_our_steps(tmp_path: Path) -> None:
    figures = {"eager": {"900+32": 50.0, "900+64": 60.0}, "compiled": {"900+32": 40.0, "900+64": 44.0}}
    launched = {"graph": {"900+32": {"step_ms": 5.0}}, "plain": {"900+32": {"step_ms": 8.0}}}
    measured = Finding({"backends": {"ort-cuda": launched}, "rooflines_ms": {"900+32": {}}})
    write("steps", measured, tmp_path)
    ours = steps.best_steps(tmp_path / "steps.json")
    assert ours == {"900+32": 5.0}
    assert authors_loop.table(figures, ours).rows == (
        ("900 + 32", "50.0", "40.0", "5.00", "10.0", "8.0"),
        ("900 + 64", "60.0", "44.0", "", "", ""),
    )
    write("steps", Finding(skipped="no GPU"), tmp_path)
    assert steps.best_steps(tmp_path / "steps.json") == steps.best_steps(tmp_path / "none.json") == {}


def test_a_plan_that_does_not_load_is_told_in_the_librarys_words(rig: Rig, bundle: Bundle) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    assert "does not load" in rtx_loads.probe(trt, bundle, "8.9", rig.device)
    assert "does not build" in rtx_loads.probe(trt, bundle, rtx_loads.CURRENT, rig.device)
