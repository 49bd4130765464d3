"""A LLaDA checkpoint as the GGUF file that llama.cpp reads, for `benchmarks/peers.py`.

Names and keys are those of llama.cpp's own converter (`conversion/llada.py`), which wants PyTorch and
transformers; queries and keys are reordered as there, because its rotary embedding turns neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lladav.export.checkpoint import Checkpoint
from lladav.geometry import LanguageGeometry

WEIGHTS = ("f32", "f16", "bf16", "q8_0", "q4_0")
"""Types of matrices; norms are float32 always."""

_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
Floats = npt.NDArray[np.float32]


def write_gguf(checkpoint: str | Path, file: Path, weights: str, g: LanguageGeometry, mask: int) -> None:
    """Writes the text model of a checkpoint.

    Args:
        checkpoint: folder in Hugging Face layout, with a byte-level tokenizer.
        file: to write.
        weights: one of `WEIGHTS`, of every matrix, embedding and head included.
        g: sizes.
        mask: id of the mask token.
    """
    import gguf

    source = Checkpoint.open(checkpoint)
    writer = gguf.GGUFWriter(str(file), "llada")
    writer.add_block_count(g.layers)
    writer.add_context_length(g.max_positions)
    writer.add_embedding_length(g.hidden_size)
    writer.add_feed_forward_length(g.intermediate_size)
    writer.add_head_count(g.heads)
    writer.add_head_count_kv(g.kv_heads)
    writer.add_rope_dimension_count(g.head_size)
    writer.add_rope_freq_base(g.rope_theta)
    writer.add_layer_norm_rms_eps(g.rms_norm_eps)
    writer.add_vocab_size(g.vocab_rows)
    writer.add_causal_attention(False)
    writer.add_diffusion_shift_logits(False)
    _add_tokenizer(writer, json.loads((source.path / "tokenizer.json").read_text("utf-8")), g.vocab_rows, mask)
    kind = gguf.GGMLQuantizationType[weights.upper()]
    for name, values in _tensors(source, g):
        stored = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else kind
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(source: Checkpoint, g: LanguageGeometry) -> Iterator[tuple[str, Floats]]:
    """Names in the file, and values."""

    def read(name: str) -> Floats:
        values: Floats = source.read(f"{name}.weight").astype(np.float32, copy=False)
        return values

    yield "token_embd.weight", read("model.embed_tokens")[: g.vocab_rows]
    yield "output.weight", read("lm_head")[: g.vocab_rows]
    yield "output_norm.weight", read("model.norm")
    for layer in range(g.layers):
        for theirs, ours in _PARTS.items():
            values = read(f"model.layers.{layer}.{theirs}")
            if ours in ("attn_q", "attn_k"):
                values = neighbours(values, g.head_size)
            yield f"blk.{layer}.{ours}.weight", values


def neighbours(rows: Floats, head_size: int) -> Floats:
    """Rows of each head in the order 0, h/2, 1, h/2 + 1, ..., so that what turns together lies side by side."""
    halves = rows.reshape(-1, 2, head_size // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def _add_tokenizer(writer: object, tokenizer: dict, rows: int, mask: int) -> None:
    """The vocabulary, filled up with padding to one token per row."""
    import gguf

    assert isinstance(writer, gguf.GGUFWriter)
    base, added = tokenizer["model"]["vocab"], {t["id"]: t["content"] for t in tokenizer["added_tokens"]}
    texts = {number: text for text, number in base.items()} | added
    kinds = [
        gguf.TokenType.CONTROL if n in added else gguf.TokenType.NORMAL if n in texts else gguf.TokenType.UNUSED
        for n in range(rows)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([texts.get(n, f"[PAD{n}]") for n in range(rows)])
    writer.add_token_types(kinds)
    # llama.cpp wants at least one; this one never applies, since what it makes is no token.
    writer.add_token_merges(tokenizer["model"]["merges"] or ["! !"])
    writer.add_mask_token_id(mask)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages[0]['content'] }}")
