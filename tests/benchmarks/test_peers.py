"""The comparison with other runtimes: what it needs, the models it writes, the pages it fills."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import FFN, HEADS, LAYERS, ROWS, WIDTH, tiny_tensors

from benchmarks import llama_cpp, peers
from benchmarks.gguf_model import neighbours, write_gguf
from benchmarks.llama_cpp import DiffusionExample, build
from benchmarks.peers_table import report
from lladav.errors import BackendError
from lladav.export.checkpoint import Checkpoint
from lladav.export.model_config import read_geometry
from lladav.geometry import LanguageGeometry

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install '.[dev]'")


@pytest.fixture(scope="module")
def language(tiny_checkpoint: Path) -> LanguageGeometry:
    return read_geometry(Checkpoint.open(tiny_checkpoint), ROWS).language


@pytest.mark.parametrize(("weights", "tolerance"), [("f32", 0), ("f16", 1e-3), ("q8_0", 2e-2), ("q4_0", 0.3)])
def test_model_holds_the_checkpoint(
    tiny_checkpoint: Path, language: LanguageGeometry, tmp_path: Path, weights: str, tolerance: float
) -> None:
    # Blocks of 32 do not divide a feed-forward layer of 48.
    language = language.model_copy(update={"layers": 0}) if weights.startswith("q") else language
    write_gguf(tiny_checkpoint, tmp_path / "model.gguf", weights, language, mask=7)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    found = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    source = tiny_tensors(0)
    assert len(found) == 3 + 9 * language.layers
    pairs = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
    for layer in range(language.layers):
        theirs, ours = f"model.layers.{layer}", f"blk.{layer}"
        pairs |= {f"{ours}.attn_v": f"{theirs}.self_attn.v_proj", f"{ours}.attn_output": f"{theirs}.self_attn.o_proj"}
        pairs |= {f"{ours}.ffn_{part}": f"{theirs}.mlp.{part}_proj" for part in ("gate", "up", "down")}
        pairs |= {f"{ours}.attn_norm": f"{theirs}.input_layernorm"}
        pairs |= {f"{ours}.ffn_norm": f"{theirs}.post_attention_layernorm"}
        for part in "qk":
            expected = neighbours(source[f"{theirs}.self_attn.{part}_proj.weight"], WIDTH // HEADS)
            np.testing.assert_allclose(found[f"{ours}.attn_{part}.weight"], expected, atol=1e-3)
    for name, wanted in pairs.items():
        expected = source[f"{wanted}.weight"]
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(found[f"{name}.weight"], expected, atol=tolerance * scale, err_msg=name)


def test_model_says_what_it_is(tiny_checkpoint: Path, language: LanguageGeometry, tmp_path: Path) -> None:
    write_gguf(tiny_checkpoint, tmp_path / "model.gguf", "f32", language, mask=7)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    assert value("general.architecture") == "llada"
    assert [value(f"llada.{key}") for key in ("block_count", "embedding_length", "feed_forward_length")] == [
        LAYERS,
        WIDTH,
        FFN,
    ]
    assert (value("llada.attention.causal"), value("diffusion.shift_logits")) == (False, False)
    assert value("tokenizer.ggml.mask_token_id") == 7
    tokens = value("tokenizer.ggml.tokens")
    assert len(tokens) == ROWS
    vocabulary = json.loads((tiny_checkpoint / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    assert all(tokens[number] == text for text, number in vocabulary.items())
    assert tokens[-1] == f"[PAD{ROWS - 1}]"


def test_neighbours_turn_as_halves_do() -> None:
    """Rotary embedding of halves, and of neighbours after reordering, give the same scores."""
    draw = np.random.default_rng(0)
    size, heads = 8, 2
    query, key = (draw.standard_normal((heads * size, 5)).astype(np.float32) for _ in range(2))
    x, y = draw.standard_normal((2, 5)).astype(np.float32)
    angles = np.linspace(0.1, 2.0, size // 2)

    def halves(rows: np.ndarray, angle: np.ndarray) -> np.ndarray:
        a, b = np.split(rows.reshape(heads, size), 2, axis=1)
        return np.hstack([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])

    def pairs(rows: np.ndarray, angle: np.ndarray) -> np.ndarray:
        a, b = rows.reshape(heads, size)[:, ::2], rows.reshape(heads, size)[:, 1::2]
        return np.hstack([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])

    expected = (halves(query @ x, angles) * halves(key @ y, 3 * angles)).sum(1)
    found = (pairs(neighbours(query, size) @ x, angles) * pairs(neighbours(key, size) @ y, 3 * angles)).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_nothing_to_build_from(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no source package") as caught:
        build(tmp_path)
    assert (
        caught.value.cure == f"pip download --no-binary llama-cpp-python --no-deps --dest {tmp_path} llama-cpp-python"
    )


def test_sources_come_out_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as CMake, which is not there to say what it thinks of them."""
    inside = tmp_path / "llama_cpp_python-1" / "vendor" / "llama.cpp" / "src"
    inside.mkdir(parents=True)
    (inside / "llama.cpp").write_text("int main() {}")
    (tmp_path / "llama_cpp_python-1" / "setup.py").write_text("what is not needed")
    cache = tmp_path / "cache"
    cache.mkdir()
    with tarfile.open(cache / "llama_cpp_python-1.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "llama_cpp_python-1", "llama_cpp_python-1")
    monkeypatch.setattr(llama_cpp.shutil, "which", lambda _: None)
    with pytest.raises(BackendError, match="CMake, which is not here"):
        build(cache)
    assert sorted(path.name for path in cache.iterdir()) == ["llama.cpp", "llama_cpp_python-1.tar.gz"]
    assert (cache / "llama.cpp" / "src" / "llama.cpp").read_text() == "int main() {}"


def test_nothing_to_build_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama.cpp").mkdir()
    monkeypatch.setattr(llama_cpp.shutil, "which", lambda _: None)
    with pytest.raises(BackendError, match="CMake, which is not here"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--cache"),
        (("--cache", "nowhere"), "pip download --no-binary llama-cpp-python"),
        (("--cache", "nowhere", "--weights", "q3_k"), "invalid choice"),
        (("--cache", "nowhere", "--rounds", "0"), "at least one round"),
    ],
)
def test_options(
    options: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["peers", *options])
    with pytest.raises(SystemExit) as caught:
        peers.main()
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def program(folder: Path, text: str) -> Path:
    """A stand-in for the example."""
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_picks_are_read_from_the_words(tmp_path: Path) -> None:
    said = program(tmp_path, "echo 'steps 1/1 <unused300><unused41>'; echo noise >&2")
    assert DiffusionExample(said, tmp_path / "model", "abc", 8).picks() == [300, 41]


def test_time_is_what_the_processor_worked(tmp_path: Path) -> None:
    """A program that is busy for as many turns as it has steps; the margin is what a busy machine may add."""
    busy = "i=0; for last; do :; done; while [ $i -lt $((last * 20000)) ]; do i=$((i + 1)); done; sleep 0.2"
    example = DiffusionExample(program(tmp_path, busy), tmp_path / "model", "abc", 8)
    short = example.seconds(1)
    assert short < 0.2
    assert example.seconds(20) > 4 * short


def test_pass_is_what_more_steps_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loading, step = 7.0, 0.5
    monkeypatch.setattr(DiffusionExample, "seconds", lambda _, steps: loading + step * steps)
    assert DiffusionExample(tmp_path / "program", tmp_path / "model", "abc", 8).pass_seconds() == step


def test_failure_of_the_example_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no such model"):
        DiffusionExample(program(tmp_path, "echo no such model >&2; exit 3"), tmp_path / "model", "abc", 8).picks()


def test_page_judges_by_the_best() -> None:
    ratios = {"llama.cpp f16": {"lladav fp32": 3.0}, "llama.cpp bf16": {"lladav fp32": 1.5}}
    results = {
        "machine": dict.fromkeys(("processor", "cores", "load", "load_after", "torch", "onnxruntime"), "x"),
        "operations": dict.fromkeys(("llama.cpp f16", "llama.cpp bf16", "lladav fp32"), 6 * 10**9),
        "passes": {"llama.cpp f16": [3.0], "llama.cpp bf16": [1.5], "lladav fp32": [1.0]},
        "ratios": ratios | {"lladav fp32": {"lladav fp32": 1.0}},
        "same_picks": {"llama.cpp f16": 0.5},
        "answers": {
            "best": "llama.cpp bf16",
            "best_seconds": 96.0,
            "ours": {"lladav fp32": {"fast": [3.0]}},
            "ratios": {"lladav fp32": {"fast": 32.0}},
        },
    }
    text = report(results)
    assert "which here is llama.cpp bf16: lladav fp32 **missed**" in " ".join(text.split())
    assert "| llama.cpp bf16 | 1,500 | 4 |" in text
    assert "| lladav fp32 | 3.0 | 32.0, reached |" in text
