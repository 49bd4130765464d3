"""LLaDA-V in PyTorch: what the exported graphs are compared with.

Parameter names are those of the checkpoint, so ``load_state_dict`` takes its tensors as
they are. The mathematics follow the authors' code (repository ML-GSAI/LLaDA-V, commit
2252769): SigLIP without post-LayerNorm, two-layer connector with exact GELU, and a
Llama-like language model without a causal mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lladav.geometry import Geometry, LanguageGeometry, VisionGeometry


class VisionEmbeddings(nn.Module):
    """Patches plus positions."""

    def __init__(self, g: VisionGeometry) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, g.hidden_size, g.patch_size, stride=g.patch_size)
        self.position_embedding = nn.Embedding(g.tokens, g.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches: Tensor = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        return patches + self.position_embedding.weight


class VisionAttention(nn.Module):
    """All patches attend to all."""

    def __init__(self, g: VisionGeometry) -> None:
        super().__init__()
        self.heads = g.heads
        self.q_proj = nn.Linear(g.hidden_size, g.hidden_size)
        self.k_proj = nn.Linear(g.hidden_size, g.hidden_size)
        self.v_proj = nn.Linear(g.hidden_size, g.hidden_size)
        self.out_proj = nn.Linear(g.hidden_size, g.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class VisionMLP(nn.Module):
    """Two layers around tanh-approximated GELU."""

    def __init__(self, g: VisionGeometry) -> None:
        super().__init__()
        self.fc1 = nn.Linear(g.hidden_size, g.intermediate_size)
        self.fc2 = nn.Linear(g.intermediate_size, g.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class VisionLayer(nn.Module):
    """Pre-LayerNorm encoder layer."""

    def __init__(self, g: VisionGeometry) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(g.hidden_size, eps=g.layer_norm_eps)
        self.self_attn = VisionAttention(g)
        self.layer_norm2 = nn.LayerNorm(g.hidden_size, eps=g.layer_norm_eps)
        self.mlp = VisionMLP(g)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class VisionTransformer(nn.Module):
    """`pixel_values` `[T, 3, S, S]` -> features `[T, tokens, D_vision]`, no post-LayerNorm."""

    def __init__(self, g: VisionGeometry) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(g)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(VisionLayer(g) for _ in range(g.layers))

    def forward(self, pixel_values: Tensor) -> Tensor:
        x: Tensor = self.embeddings(pixel_values)
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            x = layer(x)
        return x


class RMSNorm(nn.Module):
    """Computed in float32, as the authors do."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


def rotary_tables(position_ids: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine `[B, 1, L, head_size]` float32 for rotate-half RoPE."""
    inverse = 1.0 / (theta ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size))
    angles = position_ids[..., None].float() * inverse
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate-half RoPE on `[B, H, L, head_size]`."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)


class LanguageAttention(nn.Module):
    """Bidirectional; heads may share keys and values."""

    def __init__(self, g: LanguageGeometry) -> None:
        super().__init__()
        self.g = g
        self.q_proj = nn.Linear(g.hidden_size, g.heads * g.head_size, bias=False)
        self.k_proj = nn.Linear(g.hidden_size, g.kv_heads * g.head_size, bias=False)
        self.v_proj = nn.Linear(g.hidden_size, g.kv_heads * g.head_size, bias=False)
        self.o_proj = nn.Linear(g.heads * g.head_size, g.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (-1, self.g.head_size)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        shared = self.g.kv_heads != self.g.heads
        mixed = F.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, attn_mask=bias, enable_gqa=shared
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class LanguageMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, g: LanguageGeometry) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(g.hidden_size, g.intermediate_size, bias=False)
        self.up_proj = nn.Linear(g.hidden_size, g.intermediate_size, bias=False)
        self.down_proj = nn.Linear(g.intermediate_size, g.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class LanguageLayer(nn.Module):
    """Pre-norm decoder layer, without a causal mask."""

    def __init__(self, g: LanguageGeometry) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(g.hidden_size, g.rms_norm_eps)
        self.self_attn = LanguageAttention(g)
        self.post_attention_layernorm = RMSNorm(g.hidden_size, g.rms_norm_eps)
        self.mlp = LanguageMLP(g)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, bias)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    """Everything below the head; the attribute names spell the checkpoint's tensor names."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        g = geometry.language
        self.embed_tokens = nn.Embedding(g.vocab_rows, g.hidden_size)
        self.layers = nn.ModuleList(LanguageLayer(g) for _ in range(g.layers))
        self.norm = RMSNorm(g.hidden_size, g.rms_norm_eps)
        if geometry.vision is not None:
            self.image_newline = nn.Parameter(torch.zeros(g.hidden_size))
            self.mm_projector = nn.Sequential(
                nn.Linear(geometry.vision.hidden_size, g.hidden_size),
                nn.GELU(),
                nn.Linear(g.hidden_size, g.hidden_size),
            )
            self.vision_tower = nn.Module()
            self.vision_tower.vision_tower = nn.Module()
            self.vision_tower.vision_tower.vision_model = VisionTransformer(geometry.vision)


class LladaV(nn.Module):
    """The whole model; `state_dict()` has exactly the tensors of a checkpoint that are used."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        g = geometry.language
        self.model = Body(geometry)
        self.lm_head = nn.Linear(g.hidden_size, g.vocab_rows, bias=False)

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """`[T, 3, S, S]` -> tower features `[T, tokens, D_vision]`."""
        features: Tensor = self.model.vision_tower.vision_tower.vision_model(pixel_values)  # type: ignore[union-attr,operator]
        return features

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """`[T, 3, S, S]` -> connector output `[T, tokens, D]`, before the anyres merge."""
        features: Tensor = self.model.mm_projector(self.vision_features(pixel_values))
        return features

    def hidden_states(
        self, inputs_embeds: Tensor, position_ids: Tensor | None = None, bias: Tensor | None = None
    ) -> list[Tensor]:
        """Input, output of every layer but the last, and the final norm's output, each `[B, L, D]`."""
        g = self.geometry.language
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1])[None]
        cos, sin = rotary_tables(position_ids, g.head_size, g.rope_theta)
        states = [inputs_embeds]
        for layer in self.model.layers:
            states.append(layer(states[-1], cos, sin, bias))
        states[-1] = self.model.norm(states[-1])
        return states

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """`[B, L, D]` -> logits `[B, L, V]`.

        Args:
            inputs_embeds: `[B, L, D]`.
            position_ids: `[B, L]` int64; 0..L-1 when absent.
            bias: additive attention bias broadcast to `[B, heads, L, L]`, or None.
        """
        logits: Tensor = self.lm_head(self.hidden_states(inputs_embeds, position_ids, bias)[-1])
        return logits
