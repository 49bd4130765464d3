"""Predictions, compared with values computed by hand and with what others published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.make_full_size import real_geometry
from lladav.engines import predict
from lladav.engines.needs import activation_bytes, memory_needs
from lladav.engines.prediction import implications, unsplit_head
from lladav.engines.target import EnginePrecision, load_target
from lladav.errors import EngineError, OptionError
from lladav.geometry import Geometry
from lladav.linear_layers import Numbers
from lladav.manifest import Buckets, Manifest, Precision, Quantization
from lladav.memory_plan import IDS

MakeBundle = Callable[[Precision], Path]

LLADA = real_geometry().language


@pytest.fixture(scope="module")
def llada(bundle_in: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that says it is LLaDA-V's language model; its files are the tiny model's."""
    path = Path(shutil.copytree(bundle_in("fp16"), tmp_path_factory.mktemp("llada") / "bundle"))
    small = Manifest.read(path)
    buckets = Buckets(tiles=(1,), prompt=(896, 3650), canvas=(32, 128))
    large = small.model_copy(update={"geometry": Geometry(language=LLADA, vision=None), "buckets": buckets})
    large.write(path)
    return path


def test_memory_of_the_tiny_model(bundle_in: MakeBundle) -> None:
    manifest = Manifest.read(bundle_in("fp16"))
    rows = manifest.geometry.language.vocab_rows
    needs = memory_needs(manifest, 128, 32, batch=2, numbers=Numbers("fp16"))
    # Two layers of 4 x 32 x 32 + 3 x 32 x 48 + 2 x 32 parameters, the last norm and the head.
    language, norms = 2 * (4096 + 4608) + 32 * rows, 2 * 64 + 32
    # Two layers of 4 x 25 x 24 + 25 x 40 + 41 x 24; norms 4 x 24 each, patches 588 x 24 + 24, positions 16 x 24.
    tower, floats = 2 * (2400 + 1000 + 984), 2 * 96 + 14136 + 384
    connector = 25 * 32 + 33 * 32
    assert needs.weights == 2 * (language + tower + connector) + 4 * (norms + floats)
    # 2 layers x 32 wide, keys and values, two bytes: 256 a position; two sequences.
    assert needs.prompt_kv == 2 * 128 * 256
    assert needs.logits == 4 * 2 * 32 * rows
    # The refresh: 8 MiB, 160 positions of 16 x 32 + 4 x 48 bytes and 32 rows of logits, for two sequences.
    assert needs.activations == 8_388_608 + 2 * (160 * 704 + 32 * 2 * rows)
    # The embedding table, rows of 32 floats for 160 + 32 positions of two sequences, four crops: 3 x 56 x 56
    # pixels, 16 rows of 24 and 16 of 32 floats, and what templates allow; less than a tenth more are positions,
    # bias and gaps.
    large = 2 * 32 * rows + 4 * 32 * 192 * 2 + 4 * 4 * (3 * 56 * 56 + 16 * 24 + 16 * 32) + 4 * IDS
    assert large < needs.buffers < 1.1 * large
    assert needs.total == needs.weights + needs.activations + needs.prompt_kv + needs.logits + needs.buffers


def test_step_joins_keys_and_values() -> None:
    g = LLADA.model_copy(
        update={"hidden_size": 32, "intermediate_size": 48, "kv_heads": 2, "heads": 2, "head_size": 16}
    )
    # 8 positions of 704 bytes, 4 x 32 bytes for each of 72 keys, 5 rows of 126,464 values of two bytes.
    found = activation_bytes(g, 8, 72, past=64, rows=5, batch=1, width=2)
    assert found == 8_388_608 + 8 * 704 + 72 * 128 + 5 * 252_928


@pytest.mark.parametrize(
    ("width", "inner", "vocabulary", "prompt", "canvas", "batch", "refresh", "step"),
    [
        (256, 768, 292, 1024, 128, 1, 16318976, 9798144),
        (256, 768, 292, 2048, 128, 1, 23396864, 10846720),
        (512, 1536, 292, 2048, 128, 1, 33554944, 13468160),
        (512, 768, 292, 2048, 128, 1, 27984384, 13468160),
        (512, 1536, 292, 2048, 512, 1, 38864896, 17238016),
        (512, 1536, 292, 2048, 128, 2, 64619008, 18743808),
        (4096, 12288, 292, 3650, 128, 1, 416679424, 78496256),
        (4096, 12288, 126349, 8192, 512, 2, 2032945152, 470857728),
        (4096, 12288, 126349, 8192, 512, 2, 2005960704, 576774144),
    ],
)
def test_estimate_of_activations_lies_above_what_was_measured(
    width: int, inner: int, vocabulary: int, prompt: int, canvas: int, batch: int, refresh: int, step: int
) -> None:
    """TensorRT-RTX 1.7.1.116, fp16; capability 8.6 and two layers, the last rows 8.9, three and in w8 all 32."""
    heads = {"heads": width // 64, "kv_heads": width // 64, "head_size": 64}
    sizes = {"hidden_size": width, "intermediate_size": inner, "vocab_rows": vocabulary, **heads}
    g, window = LLADA.model_copy(update=sizes), prompt + canvas
    estimates = (
        activation_bytes(g, window, window, past=0, rows=canvas, batch=batch, width=2),
        activation_bytes(g, canvas, window, past=prompt, rows=canvas, batch=batch, width=2),
    )
    assert refresh <= estimates[0] <= 1.2 * refresh
    assert step <= estimates[1]


def test_int8_prompt_of_the_real_model(llada: Path, tmp_path: Path) -> None:
    """In whatever precision is asked for: a byte per key and value, and a scale for each of 128."""
    other = Path(shutil.copytree(llada, tmp_path / "int8"))
    Manifest.read(other).model_copy(update={"prompt_kv": "int8"}).write(other)
    plain, *found = (
        predict(path, "orin-agx-64", canvas=32, precision=precision).rows[1]
        for path, precision in ((llada, "fp16"), (other, "fp16"), (other, "int8"))
    )
    for row in found:
        assert row.needs.prompt_kv == 3650 * (262_144 + 8_192)
    saved = 3650 * (524_288 - 262_144 - 8_192)
    assert plain.step_ms - found[0].step_ms == pytest.approx(saved / (0.76 * 204.8e9) * 1e3)


def test_real_model_on_an_orin(llada: Path) -> None:
    """A step reads what an autoregressive model of this size reads per token: 96 ms, as published."""
    found = predict(llada, "orin-agx-64", canvas=32)
    short, long = found.rows
    assert long.needs.prompt_kv == 3650 * 524_288
    # 6.98 and 0.52 billion parameters of two bytes, and 896 x 0.524 MB, at 76 % of 204.8 GB/s.
    parameters = 32 * (4 * 4096**2 + 3 * 4096 * 12288) + 126464 * 4096
    norms = 32 * 8192 + 4096
    assert short.needs.weights == 2 * parameters + 4 * norms
    # Rows in and logits out are float32; positions, rows, bias.
    values = 896 * 524_288 + 4 * 32 * (4096 + 126464) + 8 * (32 + 32) + 4 * 928
    expected = (2 * parameters + 4 * norms + values) / (0.76 * 204.8e9) * 1e3
    assert short.step_ms == pytest.approx(expected) == pytest.approx(99.4, abs=0.1)
    assert (short.step_bound, long.step_bound) == ("bandwidth", "bandwidth")
    assert long.step_ms - short.step_ms == pytest.approx((3650 - 896) * (524_288 + 4) / (0.76 * 204.8e9) * 1e3)
    # 2 x 6.98 billion for 928 positions, of which the last layer computes no more than 32 beside keys and values, their
    # attention and 32 rows of the head, at 64 % of 42.6 TFLOPS.
    every, rest = 31 * 928 + 32, 2 * 4096**2 + 3 * 4096 * 12288 + 2 * 4096 * 928
    flops = 2 * (32 * 928 * 2 * 4096**2 + every * rest + 126464 * 4096 * 32)
    assert short.refresh_ms == pytest.approx(flops / (0.64 * 42.6e12) * 1e3)
    assert short.refresh_bound == "arithmetic"
    assert 470 < short.refresh_ms < 510
    assert long.free == 64_000_000_000 - long.needs.total > 0
    assert "1,036 MB in one product" in found.notes[0]
    # The longest prompt and canvas, twice.
    window = 3650 + 128
    assert found.all_sizes_activations == 8_388_608 + 2 * (window * 114_688 + 128 * 252_928)


def test_what_does_not_fit_is_short(llada: Path) -> None:
    rows = predict(llada, "orin-nx-16", canvas=32).rows
    assert all(row.free < 0 for row in rows)
    assert predict(llada, "h200").notes == ()


def test_wide_canvas_waits_for_computing(llada: Path) -> None:
    assert {row.step_bound for row in predict(llada, "orin-agx-64", canvas=128, batch=4).rows} == {"arithmetic"}


def test_precision_of_the_prediction(bundle_in: MakeBundle) -> None:
    assert predict(bundle_in("fp32"), "rtx-40").precision == "fp16"
    assert predict(bundle_in("bf16"), "rtx-40").precision == "bf16"
    with pytest.raises(EngineError, match="no prediction for fp32") as caught:
        predict(bundle_in("fp32"), "rtx-40", precision="fp32")
    assert caught.value.cure == "pass --precision fp16 or bf16 or int8 or int4"


def test_integers_are_smaller_and_read_sooner(llada: Path) -> None:
    """The orders of the published figures: 16 GB are too few for fp16, and int4 leaves room for prompts."""
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 12288)
    rest = 126464 * 4096 + 2 * (32 * 8192 + 4096)
    scales = 32 * (5 * 4096 + 2 * 12288)
    asked: tuple[EnginePrecision, ...] = ("fp16", "int8", "int4")
    found = {name: predict(llada, "orin-agx-64", precision=name, canvas=32).rows[0] for name in asked}
    assert found["fp16"].needs.weights == 2 * (linear + rest)
    assert found["int8"].needs.weights == linear + 2 * scales + 2 * rest
    # Half a byte, and a scale of two bytes for 128 of them.
    assert found["int4"].needs.weights == linear // 2 + linear // 64 + 2 * rest
    for row in found.values():
        reading = (row.needs.weights + row.needs.prompt_kv) / (0.76 * 204.8e9) * 1e3
        assert row.step_ms == pytest.approx(reading, rel=5e-3)
        assert row.refresh_ms == found["fp16"].refresh_ms
    assert predict(llada, "orin-nx-16", precision="fp16", canvas=32).rows[0].free < 0
    assert predict(llada, "orin-nx-16", precision="int4", canvas=32).rows[0].free > 0


def test_head_in_parts_needs_no_warning(llada: Path) -> None:
    manifest = Manifest.read(llada)
    whole, split = (manifest.model_copy(update={"head_parts": parts}) for parts in (1, 8))
    assert "1,036 MB in one product" in unsplit_head(load_target("orin-agx-64"), whole)
    assert unsplit_head(load_target("orin-agx-64"), split) == ""
    assert unsplit_head(load_target("rtx-40"), whole) == ""


def test_integers_as_inputs_are_unmeasured_on_rtx(llada: Path) -> None:
    manifest = Manifest.read(llada)
    integers = manifest.model_copy(update={"quantization": Quantization(form="w8a8"), "head_parts": 8})
    assert "support matrix" in implications(load_target("rtx-40"), integers)[0]
    assert implications(load_target("h200"), integers) == ()


def test_options_that_mean_nothing(bundle_in: MakeBundle) -> None:
    with pytest.raises(OptionError, match="33 is no canvas bucket") as caught:
        predict(bundle_in("fp16"), "rtx-40", canvas=33)
    assert "8, 32" in caught.value.cure
    with pytest.raises(OptionError, match="batch of 0"):
        predict(bundle_in("fp16"), "rtx-40", batch=0)
