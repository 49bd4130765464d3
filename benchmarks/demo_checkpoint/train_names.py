"""Between the stages: the language model learns to read the tower, on names alone.

From random weights it takes thousands of steps until attention finds the picture among the
text. So three things are written into the weights first, and a short training on pooled features
does the rest:

* the connector is linear (gelu(x) - gelu(-x) = x) and turns features into the 127 directions of
  a linear discriminant analysis, so that what tells names apart has unit size,
* two heads of the first layer attend to all tokens alike and pass those directions on,
* the rest of the attention starts large enough to tell positions apart.

Every picture is one row here, the mean of its features, repeated; uniform attention sees the
same as later, when all rows are given.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.demo_checkpoint import augment
from benchmarks.demo_checkpoint.drawings import Thing, load_things
from benchmarks.demo_checkpoint.questions import name_question
from benchmarks.demo_checkpoint.sizes import VISION, geometry
from benchmarks.demo_checkpoint.tokenizer import EOT, MASK, prompt_ids, train_tokenizer
from benchmarks.demo_checkpoint.train_answers import VOCABULARY, Pictures, answer_logits
from benchmarks.demo_checkpoint.train_tower import plain_attention
from export.reference import LladaV

DIRECTIONS, CHANNELS = 127, 128
CANVAS, ROWS = 8, 16
# Of a feature that is the same in every picture nothing can be learned.
_CONSTANT = 1e-3


@torch.no_grad()
def mean_features(model: LladaV, pictures: Pictures, passes: int) -> tuple[Tensor, Tensor]:
    """Mean tower features `[passes * N, D_vision]` of every drawing, augmented anew each time, and labels."""
    features, labels = [], []
    for _ in range(passes):
        for picked in torch.randperm(len(pictures.labels)).split(256):
            zoom = augment.warp_grid(len(picked), VISION.image_size, (0.8, 1.08), 0.7)
            moved = F.grid_sample(pictures.drawings[picked].float() / 255, zoom, mode="bilinear", align_corners=False)
            moved = augment.recolour(moved, 0.7)
            opaque = moved[:, :3] + (1 - moved[:, 3:]) * augment.grounds(len(picked))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                seen = model.vision_features(augment.degrade(opaque, 0.5).clamp(0, 1) * 2 - 1)
            features.append(seen.float().mean(1))
            labels.append(pictures.labels[picked])
    return torch.cat(features), torch.cat(labels)


def discriminants(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Directions `[DIRECTIONS, D_vision]` that tell classes apart, scaled to unit size, and the mean."""
    mean, count = features.mean(0), torch.bincount(labels, minlength=classes).clamp(min=1)
    means = torch.zeros(classes, features.shape[1]).index_add_(0, labels, features) / count[:, None]
    within = features - means[labels]
    covariance = within.T @ within / len(features)
    spread = covariance.diagonal().sqrt()
    live = spread > _CONSTANT
    spread = torch.where(live, spread, torch.ones(()))
    correlation = covariance / spread / spread[:, None] * live * live[:, None] + 0.1 * torch.eye(len(mean))
    lower = torch.linalg.cholesky(correlation.double()).float()
    whitening = torch.linalg.solve_triangular(lower, torch.diag(live / spread), upper=False)
    separated = (means - mean) @ whitening.T
    directions = torch.linalg.svd(separated - separated.mean(0), full_matrices=False)[2][:DIRECTIONS] @ whitening
    return directions / ((features - mean) @ directions.T).std(), mean


@torch.no_grad()
def start(model: LladaV, directions: Tensor, mean: Tensor) -> None:
    """Writes the connector and the attention of the module's text."""
    body = model.model
    nn.init.normal_(model.lm_head.weight, std=0.02)
    nn.init.normal_(body.embed_tokens.weight, std=0.3)
    body.embed_tokens.weight[:, :CHANNELS] *= 0.1
    for layer in body.layers:
        attention = layer.self_attn
        for part, std in ((attention.q_proj, 0.09), (attention.k_proj, 0.09)):
            nn.init.normal_(part.weight, std=std)  # type: ignore[arg-type]
        for part in (attention.v_proj, attention.o_proj):
            nn.init.normal_(part.weight, std=0.04)  # type: ignore[arg-type]
    first, index = body.layers[0].self_attn, torch.arange(CHANNELS)
    first.q_proj.weight[:CHANNELS] = 0
    first.k_proj.weight[:CHANNELS] = 0
    first.v_proj.weight[:CHANNELS] = 0
    first.o_proj.weight[:, :CHANNELS] = 0
    first.v_proj.weight[index, index] = 1
    first.o_proj.weight[index, index] = 2

    rows = torch.cat((directions, torch.zeros(CHANNELS - DIRECTIONS, directions.shape[1])))
    into, out = body.mm_projector[0], body.mm_projector[2]  # type: ignore[index]
    into.weight.copy_(torch.cat((rows, -rows)))
    # Of the rounded weight, since the tower's constant channels are large.
    into.bias.copy_(-(into.weight.half().float() @ mean))
    out.weight.zero_()
    out.bias.zero_()
    out.weight[index, index], out.weight[index, CHANNELS + index] = 1, -1
    body.image_newline.zero_()


def targets(names: list[list[int]], end: int) -> tuple[Tensor, Tensor]:
    """Answers `[C, CANVAS]` filled with the end of turn, and the weight of each of their tokens."""
    ids, weights = torch.full((len(names), CANVAS), end), torch.full((len(names), CANVAS), 0.1)
    for row, weight, name in zip(ids, weights, names, strict=True):
        row[: len(name)] = torch.tensor(name[:CANVAS])
        weight[: len(name) + 1] = 1.0
    return ids, weights


def train(model: LladaV, features: Tensor, labels: Tensor, things: list[Thing], args: argparse.Namespace) -> None:
    """Masked diffusion on names, as in `train_answers`."""
    tokenizer = train_tokenizer(things, VOCABULARY)
    end, mask = tokenizer.token_to_id(EOT), tokenizer.token_to_id(MASK)
    answers, weights = targets([tokenizer.encode(thing.name).ids for thing in things], end)
    before, after = (torch.tensor(ids) for ids in prompt_ids(tokenizer, name_question(things[0]).text))
    follows = len(before) + 2 * VISION.tokens + VISION.side
    positions = torch.cat(
        (
            len(before) + torch.arange(0, VISION.tokens, VISION.tokens // ROWS),
            follows + torch.arange(len(after) + CANVAS),
        )
    ).expand(args.batch, -1)
    table = model.model.embed_tokens
    trained = [*model.model.layers.parameters(), *model.model.norm.parameters(), table.weight, model.lm_head.weight]
    optimiser = torch.optim.AdamW(trained, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
    began, step, losses = time.monotonic(), 0, []
    while (done := (time.monotonic() - began) / (args.minutes * 60)) < 1:
        for group in optimiser.param_groups:
            warm = min(1.0, (step + 1) / 100)
            group["lr"] = args.rate * warm * (0.03 + 0.97 * (0.5 + 0.5 * math.cos(math.pi * done)))
        picked = torch.randint(len(features), (args.batch,))
        with torch.no_grad():
            row = model.model.mm_projector(features[picked])
            row[:, :DIRECTIONS] += 0.3 * torch.randn(args.batch, DIRECTIONS)
        target = answers[labels[picked]]
        hidden = torch.randint(1, CANVAS + 1, (args.batch, 1))
        masked = torch.rand(target.shape).argsort(1).argsort(1) < hidden
        canvas = table(target.masked_fill(masked, mask))
        embeds = torch.cat((row[:, None].expand(-1, ROWS, -1), table(after).expand(args.batch, -1, -1), canvas), 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = answer_logits(model, embeds, positions, None, CANVAS)
        weight = weights[labels[picked]]
        loss = F.cross_entropy(logits.float().transpose(1, 2), target, reduction="none") * weight
        loss = (loss * masked * CANVAS / hidden).sum() / weight.sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        step += 1
        losses.append(float(loss.detach()))
        if step % 100 == 0:
            print(f"step {step} {time.monotonic() - began:.0f}s loss {sum(losses[-100:]) / 100:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder")
    parser.add_argument("--cache", type=Path, required=True, help="folder for rendered drawings")
    parser.add_argument("--tower", type=Path, required=True, help="tower.pt of train_tower.py")
    parser.add_argument("--out", type=Path, required=True, help="names.pt to write")
    parser.add_argument("--passes", type=int, default=6, help="augmented copies of every drawing")
    parser.add_argument("--minutes", type=float, default=3.5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    F.scaled_dot_product_attention = plain_attention  # type: ignore[assignment]
    things = [thing for thing in load_things(args.data).values() if thing.concrete]
    model = LladaV(geometry(train_tokenizer(things, VOCABULARY).get_vocab_size()))
    stored = torch.load(args.tower, weights_only=True)
    tower = model.model.vision_tower.vision_tower.vision_model  # type: ignore[union-attr]
    tower.load_state_dict({k.removeprefix("tower."): v for k, v in stored.items() if k.startswith("tower.")})
    features, labels = mean_features(model, Pictures(args, things, args.seed), args.passes)
    start(model, *discriminants(features, labels, len(things)))
    train(model, features, labels, things, args)
    torch.save(model.state_dict(), args.out)


if __name__ == "__main__":
    main()
