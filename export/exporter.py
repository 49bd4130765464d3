"""From a checkpoint to a bundle."""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx
from pydantic import ValidationError

from lladav import __version__
from lladav.bundle import Bundle
from lladav.errors import CheckpointError
from lladav.export import require
from lladav.export.calibration_gaps import calibration_gap
from lladav.export.checkpoint import Checkpoint
from lladav.export.config import ExportConfig
from lladav.export.coverage import check_coverage, linear_layers
from lladav.export.denoiser_graph import denoiser, denoiser_cpu
from lladav.export.graph_form import GraphForm, LinearForm, head_parts, linear_forms, matching_layers
from lladav.export.migration import FILE as MIGRATION
from lladav.export.migration import Migration
from lladav.export.model_config import read_geometry, read_preprocessing
from lladav.export.onnx_graph import GraphBuilder
from lladav.export.progress import Progress
from lladav.export.smoothing import smooth
from lladav.export.stored_weight import ELEMENT_BITS
from lladav.export.tokenizer_config import read_tokens, tokenizer_length
from lladav.export.vision_graphs import connector, vision_encoder
from lladav.export.weights import HashedFile, WeightStream
from lladav.geometry import Geometry
from lladav.manifest import (
    COMPUTE_TYPES,
    INT4_BLOCK,
    MASK_DISTANCE,
    Buckets,
    CheckpointIdentity,
    FileEntry,
    GenerationDefaults,
    Manifest,
    Precision,
    Quantization,
    TableSpec,
)
from lladav.staging import check_target, staged_folder
from lladav.statistics import Statistics

# `llava/conversation.py`, template `llava_llada`.
SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
EMBEDDING = "model.embed_tokens.weight"
NEWLINE = "model.image_newline"


def export(
    checkpoint: str | Path,
    bundle: str | Path,
    config: ExportConfig | None = None,
    progress: Progress = Progress(),  # noqa: B008 - immutable
) -> Bundle:
    """Writes the bundle of a checkpoint; it appears complete or not at all.

    Weights stream from shards to files: peak memory is about the largest tensor (2 GB for
    float32, 1 GB for float16 at the real size), and what is read of statistics: 0.2 GB, or 1.0 with the
    moments that `w4` needs.

    Args:
        checkpoint: folder in Hugging Face layout, as GSAI-ML/LLaDA-V publishes it.
        bundle: folder to make; must not exist.
        config: see `ExportConfig`.
        progress: called with every stage and the bytes it has done.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged or of an unknown kind.
        ExportError: the bundle could not be written.
        OptionError: a layer that is to be kept does not exist.
        CalibrationError: the statistics are not of this checkpoint, or lack a layer.
        VerificationError: a graph does not compute what PyTorch computes.
        BackendError: a package that the export or its verification needs is missing.
    """
    config = config or ExportConfig()
    if config.verify:
        require("verify")
    check_target(Path(bundle))
    source = Checkpoint.open(checkpoint)
    rows = _vocabulary_rows(source, config)
    geometry = read_geometry(source, rows)
    tokens = read_tokens(source)
    check_coverage(source, geometry)
    precision = config.dtype or ("fp32" if source.dtype == "float32" else "fp16")
    compute = COMPUTE_TYPES[precision]
    width = ELEMENT_BITS[compute] // 8
    moments = config.quantize == "w4"  # for GPTQ
    statistics = Statistics.open(config.statistics, moments=moments) if config.statistics else None
    integers = _integers(config, source, geometry, statistics, progress)
    parts = config.head_parts or head_parts(geometry.language, width, quantized=config.quantize_head)
    form = GraphForm(compute, parts, integers.forms, prompt_kv=config.prompt_kv)
    builders = build_graphs(geometry, form)
    table = rows * geometry.language.hidden_size * width
    needed = sum(b.weights_bytes for b in builders if b.owns_weights) + table + (1 << 24)
    with staged_folder(Path(bundle), needed) as folder:
        progress.start("weights", _used_bytes(source, builders, geometry))
        stream = WeightStream(source, progress.advance, integers.migration, integers.moments)
        files = []
        for builder in builders:
            if builder.owns_weights:
                files.append(stream.write(builder.weights, folder / builder.weights_file))
            builder.write(folder)
            onnx.checker.check_model(str(folder / f"{builder.name}.onnx"))
        tables, table_files, aliases = _write_tables(stream, geometry, tokens.mask, precision, folder)
        shutil.copyfile(source.path / "tokenizer.json", folder / "tokenizer.json")
        (folder / "export.json").write_text(config.model_dump_json(indent=2) + "\n", "utf-8")
        small = [f"{b.name}.onnx" for b in builders] + ["tokenizer.json", "export.json"]
        if integers.migration.sources:
            integers.migration.write(folder)
            small.append(MIGRATION)
        max_prompt = int(source.config.get("tokenizer_model_max_length") or geometry.language.max_positions)
        manifest = Manifest(
            precision=precision,
            quantization=integers.quantization,
            head_parts=form.head_parts,
            prompt_kv=config.prompt_kv,
            geometry=geometry,
            graphs={b.name: b.spec() for b in builders},
            tables=tables,
            buckets=_buckets(config, max_prompt, geometry.language.max_positions),
            preprocessing=read_preprocessing(source, geometry.vision),
            tokens=tokens.model_copy(update={"mask_aliases": aliases}),
            max_prompt=max_prompt,
            generation=_generation_defaults(source),
            checkpoint=CheckpointIdentity(
                fingerprint=stream.fingerprint(),
                dtype=source.dtype,
                model_type=str(source.config.get("model_type", "unknown")),
            ),
            versions={"lladav": __version__, "onnx": version("onnx"), "python": platform.python_version()},
            files=tuple(files + table_files + [_entry(folder / name) for name in small]),
        )
        if statistics is not None:
            statistics.check(manifest)
        manifest.write(folder)
        if config.verify:
            from lladav.export.verify import verify

            verify(folder, checkpoint, progress=progress)
    return Bundle.open(bundle)


def build_graphs(geometry: Geometry, form: GraphForm) -> list[GraphBuilder]:
    """Every graph of a bundle, without weights."""
    graphs = [denoiser(geometry.language, form)]
    if form.compute != "bfloat16":  # which ONNX Runtime cannot multiply on the CPU
        graphs.append(denoiser_cpu(geometry.language, form, graphs[0]))
    if geometry.vision is not None:
        graphs += [vision_encoder(geometry.vision, form), connector(geometry, form)]
    return graphs


class _Integers(NamedTuple):
    """What becomes integers, and how."""

    quantization: Quantization | None = None
    forms: Mapping[str, LinearForm] = MappingProxyType({})
    migration: Migration = Migration()
    moments: Statistics | None = None


def _integers(
    config: ExportConfig, source: Checkpoint, geometry: Geometry, statistics: Statistics | None, progress: Progress
) -> _Integers:
    """As asked for, with what a search finds to be better."""
    if config.quantize is None:
        return _Integers()
    block = INT4_BLOCK if config.quantize == "w4" else None
    kept = matching_layers(geometry, config.keep_layers)
    if statistics is not None:
        statistics.check_geometry(geometry)
    gap = calibration_gap(statistics, geometry) if statistics is not None else None
    asked = Quantization(
        form=config.quantize,
        block=block,
        kept=kept,
        head=config.quantize_head,
        widened=config.widen_on_cpu,
    )
    forms = linear_forms(geometry, asked, statistics)
    if gap is not None:
        nearest = " (weights of 4 bits are rounded to nearest, not by GPTQ)" if config.quantize == "w4" else ""
        progress.warn(f"nothing of the language model is searched by these statistics{nearest}, since {gap}")
    found = smooth(source, geometry, forms, statistics, progress, move_language=gap is None)
    if found.too_wrong:
        worst = max(found.too_wrong, key=lambda name: found.errors[name])
        progress.warn(
            f"{len(found.too_wrong)} of {len(forms)} linear layers kept in floats: "
            f"in integers outputs would be wrong by up to {found.errors[worst]:.2f} of their size ({worst})"
        )
    kept = tuple(name for name in linear_layers(geometry) if name in (*asked.kept, *found.too_wrong))
    better = asked.model_copy(update={"kept": kept})
    found_forms = linear_forms(geometry, better, statistics, found.migration)
    four_bits = any(form.weights == "int4" for form in found_forms.values())
    if statistics is None or gap is not None or not four_bits:
        return _Integers(better, found_forms, found.migration)
    return _Integers(better.model_copy(update={"rounding": "gptq"}), found_forms, found.migration, statistics)


def _vocabulary_rows(source: Checkpoint, config: ExportConfig) -> int:
    """How many rows of embedding and head are used."""
    info = source.tensors.get(EMBEDDING)
    if info is None or len(info.shape) != 2:
        raise CheckpointError(
            f"{source.path} has no embedding table {EMBEDDING}", cure="pass a folder with all of LLaDA-V's shards"
        )
    rows, needed = int(info.shape[0]), tokenizer_length(source)
    if rows < needed:
        raise CheckpointError(
            f"the tokenizer has {needed:,} tokens, but {EMBEDDING} only {rows:,} rows",
            cure="fetch the tokenizer files that belong to these weights",
        )
    return rows if config.vocab_rows == "all" else needed


def _used_bytes(source: Checkpoint, builders: list[GraphBuilder], geometry: Geometry) -> int:
    used = {w.source for b in builders for w in b.weights} | {EMBEDDING}
    used |= {NEWLINE} if geometry.vision is not None else set()
    return sum(source.tensors[name].bytes for name in used)


def _write_tables(
    stream: WeightStream, geometry: Geometry, mask: int, precision: Precision, folder: Path
) -> tuple[dict[str, TableSpec], list[FileEntry], tuple[int, ...]]:
    """Writes what the runtime reads by row; returns specs, files and the aliases of the mask."""
    language = geometry.language
    dtype = COMPUTE_TYPES[precision]
    tables = {
        "embed_tokens": TableSpec(
            file="embed_tokens.bin", dtype=dtype, shape=(language.vocab_rows, language.hidden_size)
        )
    }
    files = []
    mask_row = stream.row(EMBEDDING, mask, dtype)
    aliases: list[int] = []
    with HashedFile(folder / "embed_tokens.bin") as file:
        done = 0
        for block in stream.converted(EMBEDDING, language.vocab_rows, dtype):
            distance = np.abs(block.astype(np.float32) - mask_row).max(axis=1)
            aliases += (done + np.flatnonzero(distance < MASK_DISTANCE)).tolist()
            done += len(block)
            file.write(block)
    files.append(file.entry)
    if geometry.vision is not None:
        tables["image_newline"] = TableSpec(file="image_newline.bin", dtype="float32", shape=(language.hidden_size,))
        with HashedFile(folder / "image_newline.bin") as file:
            for block in stream.converted(NEWLINE, language.hidden_size, "float32"):
                file.write(block)
        files.append(file.entry)
    return tables, files, tuple(aliases)


def _buckets(config: ExportConfig, max_prompt: int, max_positions: int) -> Buckets:
    """Prompts with pictures are cut at `max_prompt`, which therefore is a size; text may be longer."""
    prompt = {min(size, max_positions) for size in config.prompt_buckets}
    if max(prompt) > max_prompt:
        prompt.add(max_prompt)
    return Buckets(tiles=config.tile_buckets, prompt=tuple(sorted(prompt)), canvas=config.canvas_buckets)


def _generation_defaults(source: Checkpoint) -> GenerationDefaults:
    """The authors' demo, with the length that the checkpoint asks for if it does."""
    wanted: dict[str, Any] = {"gen_length": source.generation_config.get("gen_length", 128)}
    try:
        return GenerationDefaults(system_prompt=SYSTEM_PROMPT, **wanted)
    except ValidationError as error:
        raise CheckpointError(
            f"generation_config.json asks for gen_length {wanted['gen_length']!r}", cure="make it a positive number"
        ) from error


def _entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(path=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
