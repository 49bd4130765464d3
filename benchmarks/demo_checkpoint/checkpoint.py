"""The model on disk, in the Hugging Face layout of a LLaDA-V checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from benchmarks.demo_checkpoint.sizes import CANVAS, PINPOINTS, VISION, geometry
from benchmarks.demo_checkpoint.tokenizer import BOS, EOS, save_tokenizer
from export.reference import LladaV

SHARD = "model-00001-of-00001.safetensors"
TOWER_FOLDER = "siglip_emoji"


def _config(model: LladaV, tokenizer: Tokenizer) -> dict[str, Any]:
    g = model.geometry.language
    return {
        "architectures": ["LlavaLLaDAModelLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(EOS),
        "hidden_act": "silu",
        "hidden_size": g.hidden_size,
        "image_aspect_ratio": "anyres_max_4",
        "image_crop_resolution": None,
        "image_grid_pinpoints": [[c * VISION.image_size, r * VISION.image_size] for c, r in PINPOINTS],
        "image_split_resolution": None,
        "initializer_range": 0.02,
        "intermediate_size": g.intermediate_size,
        "max_position_embeddings": g.max_positions,
        "mm_hidden_size": VISION.hidden_size,
        "mm_newline_position": "grid",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": TOWER_FOLDER,
        "model_type": "llava_llada",
        "num_attention_heads": g.heads,
        "num_hidden_layers": g.layers,
        "num_key_value_heads": g.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": g.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": g.rope_theta,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": g.max_positions,
        "tokenizer_padding_side": "right",
        "torch_dtype": "float16",
        "transformers_version": "4.39.1",
        "use_cache": False,
        "use_mm_proj": True,
        "vocab_size": g.vocab_rows,
    }


def _tower_config() -> dict[str, Any]:
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": {
            "attention_dropout": 0.0,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": VISION.hidden_size,
            "image_size": VISION.image_size,
            "intermediate_size": VISION.intermediate_size,
            "layer_norm_eps": VISION.layer_norm_eps,
            "model_type": "siglip_vision_model",
            "num_attention_heads": VISION.heads,
            "num_channels": 3,
            # One more than there are: LLaDA-V drops the last layer of its tower.
            "num_hidden_layers": VISION.layers + 1,
            "patch_size": VISION.patch_size,
        },
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_checkpoint(model: LladaV, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes configuration, tokenizer and float16 weights."""
    (folder / TOWER_FOLDER).mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"values too large for float16 in {', '.join(broken)}")
    save_file(tensors, folder / SHARD, metadata={"format": "pt"})
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(sorted(tensors), SHARD)}
    _write(folder / "model.safetensors.index.json", index)
    _write(folder / "config.json", _config(model, tokenizer))
    ids = {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": tokenizer.token_to_id(EOS)}
    _write(
        folder / "generation_config.json",
        {"_from_model_config": True, **ids, "gen_length": CANVAS, "transformers_version": "4.38.2"},
    )
    _write(folder / TOWER_FOLDER / "config.json", _tower_config())
    save_tokenizer(tokenizer, folder)


def load_checkpoint(folder: Path) -> tuple[LladaV, Tokenizer]:
    """The stored model, its weights widened to float32, and its tokenizer."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = LladaV(geometry(tokenizer.get_vocab_size()))
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / SHARD).items()})
    return model.eval(), tokenizer
