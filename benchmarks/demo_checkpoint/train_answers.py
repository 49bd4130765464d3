"""Stage 2: connector and language model learn to answer, by masked diffusion.

The objective is that of LLaDA's supervised fine-tuning (arXiv 2502.09992, eq. 5): for
t ~ U(0, 1) every token of the answer is masked with probability t, and the cross entropy at the
masked tokens is weighted with 1 / t. It is taken in the paper's equivalent form of less variance
(eq. 6): l of the L tokens are masked, l ~ U{1, .., L}, and weighted with L / l; divided by L, as
in eq. 5's implementation, that is the mean cross entropy of the masked tokens. The answer is its
text, then `<|eot_id|>` up to the end of the canvas. The tower stays as stage 1 left it.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import random
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from benchmarks.demo_checkpoint import augment, questions
from benchmarks.demo_checkpoint.checkpoint import save_checkpoint
from benchmarks.demo_checkpoint.drawings import TRAIN_STYLES, Thing, load_things
from benchmarks.demo_checkpoint.sizes import VISION, geometry
from benchmarks.demo_checkpoint.tokenizer import EOT, MASK, prompt_ids, train_tokenizer
from benchmarks.demo_checkpoint.train_tower import STYLE_SHARE, load_bank, plain_attention, reduce_gradients
from export.reference import LladaV, rotary_tables, rotate

VOCABULARY = 2400
SIZE = VISION.image_size
# Share of batches by kind: (columns, rows) of the crops, whether each crop is a drawing of its own.
LAYOUTS = {
    ((1, 1), True): 0.46,
    ((2, 2), False): 0.16,
    ((2, 1), True): 0.13,
    ((1, 2), True): 0.09,
    ((3, 1), True): 0.06,
    ((1, 3), True): 0.04,
    ((2, 2), True): 0.06,
}


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pictures of one layout with a question each.

    Attributes:
        crops: `[B, 1 + tiles, 3, S, S]` in -1..1, base crop first.
        grid: columns and rows of tiles.
        asked: one question per picture.
    """

    crops: Tensor
    grid: tuple[int, int]
    asked: list[questions.Question]


class Pictures:
    """Draws random pictures from the training styles."""

    def __init__(self, args: argparse.Namespace, things: list[Thing], seed: int) -> None:
        bank = load_bank(args.data, args.cache, TRAIN_STYLES, things, 128)
        self.drawings = torch.cat([d for d, _ in bank.values()])
        self.labels = torch.cat([y for _, y in bank.values()])
        self.share = torch.cat([torch.full((len(y),), STYLE_SHARE.get(s, 1.0)) for s, (_, y) in bank.items()])
        self.things = things
        self.rng = random.Random(seed)
        # Apart, and equal in all processes: with unequal layouts one would wait for the other.
        self.layouts = random.Random(0)

    def batch(self, size: int, short: bool) -> Batch:
        """`size` pictures of one random layout; `short` gives small single drawings only."""
        ((grid, separate),) = (
            self.layouts.choices(list(LAYOUTS), list(LAYOUTS.values())) if not short else [((1, 1), True)]
        )
        cells = grid[0] * grid[1] if separate else 1
        side = SIZE if separate else SIZE * grid[0]
        picked = torch.multinomial(self.share, size * cells, replacement=True)
        zoom = augment.warp_grid(len(picked), side, (0.8, 1.08), 0.7)
        moved = F.grid_sample(self.drawings[picked].float() / 255, zoom, mode="bilinear", align_corners=False)
        moved = augment.recolour(moved, 0.7)
        ground = augment.grounds(size).repeat_interleave(cells, 0)
        opaque = augment.degrade(moved[:, :3] + (1 - moved[:, 3:]) * ground, 0.5).clamp(0, 1)
        asked = [self._ask(picked[i * cells : (i + 1) * cells], moved[i * cells], grid) for i in range(size)]
        return Batch(anyres(opaque.view(size, cells, 3, side, side), grid), grid, asked)

    def _ask(self, picked: Tensor, first: Tensor, grid: tuple[int, int]) -> questions.Question:
        shown = [self.things[i] for i in self.labels[picked].tolist()]
        if len(shown) > 1:
            # Two equal things have no unique neighbour; counting works for them too.
            type_ = "count" if len({t.name for t in shown}) < len(shown) else None
            return questions.ask_composed(shown, *grid, self.rng, self.things, type_)
        question = questions.ask_single(shown[0], "", self.things, self.rng)
        if question.type != "colour":
            return question
        straight = torch.cat((first[:3] / first[3:].clamp(min=1e-3), first[3:])) * 255
        colour = questions.main_colour(straight.clamp(0, 255).byte().permute(1, 2, 0).numpy())
        return dataclasses.replace(question, answer=colour)


def anyres(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """Base crop and tiles of pictures whose size is the grid's, as the preprocessing cuts them.

    Args:
        cells: `[B, n, 3, s, s]` in 0..1; either one picture of the whole grid (n = 1) or its cells.
        grid: columns and rows.

    Returns:
        `[B, 1 + columns * rows, 3, S, S]` in -1..1.
    """
    columns, rows = grid
    count = cells.shape[1]
    if count == 1 and columns * rows > 1:
        whole = cells[:, 0]
        tiles = whole.unflatten(-1, (columns, SIZE)).unflatten(2, (rows, SIZE)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    else:
        tiles = cells
        whole = cells.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    base = whole
    if columns * rows > 1:
        base = F.interpolate(whole, (SIZE, SIZE), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return torch.cat((base[:, None], tiles), 1) * 2 - 1


def merge(features: Tensor, newline: Tensor, grid: tuple[int, int]) -> Tensor:
    """The anyres merge where nothing is padded or shrunk.

    Args:
        features: `[B, 1 + tiles, N, D]` connector output.
        newline: `[D]`.
        grid: columns and rows of tiles.

    Returns:
        `[B, N + rows * side * (columns * side + 1), D]`.
    """
    columns, rows = grid
    side, size, width = VISION.side, features.shape[0], features.shape[-1]
    tiles = features[:, 1:].view(size, rows, columns, side, side, width).permute(0, 1, 3, 2, 4, 5)
    lines = tiles.reshape(size, rows * side, columns * side, width)
    lines = torch.cat((lines, newline.expand(size, rows * side, 1, width)), 2)
    return torch.cat((features[:, 0], lines.flatten(1, 2)), 1)


def answer_logits(model: LladaV, embeds: Tensor, positions: Tensor, bias: Tensor | None, canvas: int) -> Tensor:
    """Logits of the last `canvas` rows, `[B, canvas, V]`.

    Equal to `model(...)[:, -canvas:]`, but the last layer computes its other rows only as far as
    attention needs them.
    """
    g = model.geometry.language
    cos, sin = rotary_tables(positions, g.head_size, g.rope_theta)
    x = embeds
    for layer in model.model.layers[:-1]:  # type: ignore[index]
        x = layer(x, cos, sin, bias)
    last = model.model.layers[-1]  # type: ignore[index]
    normed, attention, rows = last.input_layernorm(x), last.self_attn, slice(-canvas, None)

    def heads(projection: nn.Module, y: Tensor) -> Tensor:
        out: Tensor = projection(y).unflatten(-1, (-1, g.head_size)).transpose(1, 2)
        return out

    query = rotate(heads(attention.q_proj, normed[:, rows]), cos[:, :, rows], sin[:, :, rows])
    key = rotate(heads(attention.k_proj, normed), cos, sin)
    mixed = F.scaled_dot_product_attention(query, key, heads(attention.v_proj, normed), attn_mask=bias)
    x = x[:, rows] + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    x = x + last.mlp(last.post_attention_layernorm(x))
    logits: Tensor = model.lm_head(model.model.norm(x))
    return logits


class Answerer:
    """Builds the language model's input from pictures and questions."""

    def __init__(self, model: LladaV, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.eot, self.mask = tokenizer.token_to_id(EOT), tokenizer.token_to_id(MASK)

    def target(self, asked: list[questions.Question], canvas: int) -> Tensor:
        """Answers as ids `[B, canvas]`, filled with the end of turn."""
        out = torch.full((len(asked), canvas), self.eot)
        for row, question in zip(out, asked, strict=True):
            ids = self.tokenizer.encode(question.answer).ids
            row[: len(ids)] = torch.tensor(ids)
        return out

    def prompt(
        self, image: Tensor, asked: list[questions.Question], canvas: int, short: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What stands before the canvas.

        Questions of a batch differ in length. The padding goes between question and canvas,
        which changes nothing: attention has no direction, every token keeps its own position,
        and padding is masked.

        Args:
            image: `[B, M, D]` merged image rows.
            asked: B questions.
            canvas: number of answer positions G.
            short: leave out the system message and all of the image but every 8th row of the base
                crop, at their usual positions; a cheaper start of training.

        Returns:
            Rows `[B, P, D]`, positions `[B, P + G]`, and attention bias `[B, 1, 1, P + G]`.
        """
        encoded = [prompt_ids(self.tokenizer, q.text) for q in asked]
        before, after = torch.tensor(encoded[0][0]), [ids for _, ids in encoded]
        size, first, longest = len(asked), len(before) + image.shape[1], max(map(len, after))
        padded = torch.tensor([ids + [self.eot] * (longest - len(ids)) for ids in after])
        lengths = torch.tensor([len(ids) for ids in after])[:, None]
        table = self.model.model.embed_tokens
        head = torch.arange(first)
        rows = [table(before).expand(size, -1, -1), image]
        if short:
            head, rows = head[len(before) :][: VISION.tokens : 8], [image[:, : VISION.tokens : 8]]
        positions = torch.cat(
            (
                head.expand(size, -1),
                first + torch.arange(longest).expand(size, -1),
                first + lengths + torch.arange(canvas),
            ),
            1,
        )
        bias = torch.zeros(size, positions.shape[1])
        bias[:, len(head) : len(head) + longest].masked_fill_(torch.arange(longest) >= lengths, -1e4)
        return torch.cat((*rows, table(padded)), 1), positions, bias[:, None, None]


def diffusion_loss(
    answerer: Answerer, image: Tensor, asked: list[questions.Question], canvas: int, short: bool
) -> Tensor:
    """LLaDA's SFT loss of one batch; see the module's text."""
    model = answerer.model
    target = answerer.target(asked, canvas)
    # Ranks of random numbers: exactly `hidden` random tokens of each answer are masked.
    hidden = torch.randint(1, canvas + 1, (len(asked), 1))
    masked = torch.rand(target.shape).argsort(1).argsort(1) < hidden
    rows, positions, bias = answerer.prompt(image, asked, canvas, short)
    noisy = model.model.embed_tokens(target.masked_fill(masked, answerer.mask))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = answer_logits(model, torch.cat((rows, noisy), 1), positions, bias, canvas)
    losses = F.cross_entropy(logits.float().transpose(1, 2), target, reduction="none")
    # Behind the first end of turn there is nothing to learn that an answer shows.
    ended = (target == answerer.eot).cumsum(1) > 1
    losses = losses * torch.where(ended, 0.1, 1.0)
    return (losses * masked / hidden).sum() / len(asked)


def train(rank: int, args: argparse.Namespace) -> None:
    """One of `args.processes` processes; see `train_tower.train`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{args.out}/rendezvous", rank=rank, world_size=args.processes)
    F.scaled_dot_product_attention = plain_attention  # type: ignore[assignment]
    things = [t for t in load_things(args.data).values() if t.concrete]
    tokenizer = train_tokenizer(things, VOCABULARY)
    torch.manual_seed(args.seed)
    pictures = Pictures(args, things, args.seed + rank)
    model = LladaV(geometry(tokenizer.get_vocab_size()))
    model.load_state_dict(torch.load(args.names, weights_only=True))
    model.model.vision_tower.requires_grad_(False)  # type: ignore[union-attr]
    average = copy.deepcopy(model)
    answerer = Answerer(model, tokenizer)
    trained = [p for p in model.parameters() if p.requires_grad]
    averaged = [p for p in average.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.02},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )
    torch.manual_seed(args.seed + 1 + rank)
    start = saved = time.monotonic()
    step, done, losses = 0, 0.0, []
    while done < 1:
        short = done < args.short
        rate = args.rate * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, done))))
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = pictures.batch(args.batch // args.processes, short)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            if batch.grid == (1, 1):  # the only tile is the base crop again
                features = model.vision_features(batch.crops[:, 0])[:, None].expand(-1, 2, -1, -1)
            else:
                features = model.vision_features(batch.crops.flatten(0, 1)).unflatten(0, batch.crops.shape[:2])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            connected = model.model.mm_projector(features.float())
        image = merge(connected.float(), model.model.image_newline, batch.grid)
        # The first, short part leaves out most of the filling; the rest is trained as it is used.
        canvas = 8 if short else 32 if step % 8 == 7 else 16
        loss = diffusion_loss(answerer, image, batch.asked, canvas, short)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        done = reduce_gradients(model, (time.monotonic() - start) / (args.minutes * 60))
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        step += 1
        losses.append(float(loss.detach()))
        with torch.no_grad():
            momentum = min(0.995, (step + 1) / (step + 20))
            torch._foreach_lerp_(averaged, trained, 1 - momentum)
        if rank == 0 and (step % 100 == 0 or done >= 1):
            elapsed = time.monotonic() - start
            print(
                f"step {step} {elapsed:.0f}s {step * args.batch / elapsed:.0f}/s loss {sum(losses) / len(losses):.4f}",
                flush=True,
            )
            losses = []
            if done >= 1 or time.monotonic() - saved > 75:
                saved = time.monotonic()
                save_checkpoint(average, tokenizer, args.out / "checkpoint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder")
    parser.add_argument("--cache", type=Path, required=True, help="folder for rendered drawings")
    parser.add_argument("--names", type=Path, required=True, help="names.pt of train_names.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint/")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--short", type=float, default=0.0, help="share of the time with short sequences")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64, help="pictures per step of all processes together")
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "rendezvous").unlink(missing_ok=True)
    mp.spawn(train, args=(args,), nprocs=args.processes)


if __name__ == "__main__":
    main()
