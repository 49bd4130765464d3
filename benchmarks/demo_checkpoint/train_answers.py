"""Stage 2: the language model learns to answer, by masked diffusion.

The objective is that of LLaDA's supervised fine-tuning (arXiv 2502.09992, eq. 5): for
t ~ U(0, 1) every token of the answer is masked with probability t, and the cross entropy at the
masked tokens is weighted with 1 / t. It is taken in the paper's equivalent form of less variance
(eq. 6): l of the L tokens are masked, l ~ U{1, .., L}, and weighted with L / l; divided by L, as
in eq. 5's implementation, that is the mean cross entropy of the masked tokens. The answer is its
text, then `<|eot_id|>` up to the end of the canvas. Tower and connector stay as they are, so what
they see of the training pictures is computed once, before.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from benchmarks.demo_checkpoint.checkpoint import SHARD, save_checkpoint
from benchmarks.demo_checkpoint.crops import SIZE, Bank, Pictures, anyres, batch, embed, look
from benchmarks.demo_checkpoint.drawings import HELD_OUT_STYLES, Thing, load_things
from benchmarks.demo_checkpoint.language import Answerer, Rows, answer_logits
from benchmarks.demo_checkpoint.meanings import write_meanings
from benchmarks.demo_checkpoint.questions import Question, name_question
from benchmarks.demo_checkpoint.sizes import CANVAS, VISION
from benchmarks.demo_checkpoint.start import (
    CONSTANT,
    DIRECTIONS,
    READING_LAYER,
    Z,
    directions,
    name_ids,
    new_model,
    probes,
    write_connector,
    write_language,
)
from benchmarks.demo_checkpoint.template import EMBEDDING, Template
from benchmarks.demo_checkpoint.tokenizer import train_tokenizer
from benchmarks.demo_checkpoint.train_tower import TowerTrainer, load_bank, plain_attention, reduce_gradients
from export.reference import LladaV


@torch.no_grad()
def start(model: LladaV, tower_file: Path, pictures: Pictures, things: list[Thing], batches: int) -> Tensor:
    """Loads the tower, writes the connector, and returns the classifier of z `[C, DIRECTIONS + 1]`."""
    trained = TowerTrainer(Template(len(things)))
    trained.load_state_dict(torch.load(tower_file, weights_only=True))
    tower = model.model.vision_tower.vision_tower.vision_model  # type: ignore[union-attr]
    tower.load_state_dict(trained.tower.state_dict())
    means, tokens, targets = [], [], []
    for _ in range(batches):
        cells, clean, _ = pictures.draw(128, 1, SIZE)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = model.vision_features(anyres(cells, (1, 1))[:, 0]).float()
        means.append(features.mean(1)[:, -EMBEDDING:])
        colour = torch.cat((cells[:, 0], clean[:, 3:]), 1)
        patches = F.avg_pool2d(colour, VISION.patch_size).flatten(2).transpose(1, 2) * 2 - 1
        some = torch.randperm(VISION.tokens)[:8]
        tokens.append(features[:, some].flatten(0, 1))
        targets.append(patches[:, some].flatten(0, 1))
    into, centre, read = directions(torch.cat(means), trained.norm, trained.name)
    write_connector(model, into, centre, *probes(torch.cat(tokens), torch.cat(targets)))
    return read


@torch.no_grad()
def load_narrower(folder: Path) -> tuple[LladaV, Tokenizer]:
    """A stored model whose language MLPs may have fewer units; new ones are random and add nothing yet."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = new_model(tokenizer)
    for name, parameter in model.state_dict().items():
        if name.endswith("down_proj.weight"):
            parameter.zero_()
    for name, tensor in load_file(folder / SHARD).items():
        target = model.get_parameter(name).data
        target[tuple(slice(n) for n in tensor.shape)] = tensor.float()
    return model, tokenizer


def diffusion_loss(answerer: Answerer, image: Tensor, rows: Rows, asked: list[Question]) -> Tensor:
    """LLaDA's SFT loss of one batch; see the module's text."""
    model = answerer.model
    target = answerer.target(asked, CANVAS)
    # Ranks of random numbers: exactly `hidden` random tokens of each answer are masked.
    hidden = torch.randint(1, CANVAS + 1, (len(asked), 1))
    masked = torch.rand(target.shape).argsort(1).argsort(1) < hidden
    before, positions, bias = answerer.prompt(image, asked, CANVAS, rows)
    noisy = model.model.embed_tokens(target.masked_fill(masked, answerer.mask))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = answer_logits(model, torch.cat((before, noisy), 1), positions, bias, CANVAS)
    losses = F.cross_entropy(logits.float().transpose(1, 2), target, reduction="none")
    # Behind the first end of turn there is nothing to learn that an answer shows.
    ended = (target == answerer.eot).cumsum(1) > 1
    losses = losses * torch.where(ended, 0.1, 1.0)
    return (losses * masked / hidden).sum() / len(asked)


class Frozen:
    """Keeps training from washing out what `start` has written.

    All names share what is learned about them, so that telling them apart is left to z, and only
    the written heads change z.
    """

    def __init__(self, model: LladaV, ids: Tensor) -> None:
        self.head, self.ids = model.lm_head.weight, ids
        self.masks: list[tuple[nn.Parameter, Tensor]] = []
        g, body = model.geometry.language, model.model
        names = ids.flatten()
        rows = torch.ones_like(body.embed_tokens.weight)
        rows[names] = 0
        columns = torch.ones_like(self.head)
        columns[names, Z] = 0
        columns[names, CONSTANT] = 0
        final = torch.ones_like(body.norm.weight)
        final[Z] = 0
        self.masks += [(body.embed_tokens.weight, rows), (self.head, columns), (body.norm.weight, final)]
        for number, layer in enumerate(body.layers):
            read = slice(0, 2 * g.head_size)
            for part in (layer.self_attn.o_proj, layer.mlp.down_proj):  # type: ignore[union-attr]
                mask = torch.ones_like(part.weight)  # type: ignore[arg-type]
                mask[Z] = 0
                self.masks.append((part.weight, mask))  # type: ignore[arg-type]
            if number == READING_LAYER:
                mask = torch.ones_like(layer.self_attn.v_proj.weight)  # type: ignore[union-attr,arg-type]
                mask[read] = 0
                gain = torch.ones_like(layer.input_layernorm.weight)  # type: ignore[union-attr,arg-type]
                gain[Z] = 0
                self.masks += [
                    (layer.self_attn.v_proj.weight, mask),  # type: ignore[union-attr,list-item]
                    (layer.input_layernorm.weight, gain),  # type: ignore[union-attr,list-item]
                ]

    @torch.no_grad()
    def apply(self) -> None:
        """To be called between `backward` and the optimiser's step."""
        for parameter, mask in self.masks:
            if parameter.grad is not None:
                parameter.grad *= mask
        if self.head.grad is not None:
            for ids in self.ids:
                self.head.grad[ids] = self.head.grad[ids].mean(0)


class Check:
    """How many held-out drawings a fully masked canvas names, for the log."""

    def __init__(self, model: LladaV, args: argparse.Namespace, things: list[Thing], count: int) -> None:
        self.things, self.seen = things, {}
        for style, (drawings, labels) in load_bank(args.data, args.cache, HELD_OUT_STYLES, things, SIZE).items():
            chosen = torch.linspace(0, len(labels) - 1, count).long()
            x = drawings[chosen].float() / 255
            rows = look(model, ((x[:, :3] + 1 - x[:, 3:]) * 2 - 1)[:, None])
            self.seen[style] = (rows.expand(-1, 2, -1, -1), labels[chosen])

    @torch.no_grad()
    def __call__(self, answerer: Answerer) -> str:
        line = ""
        for style, (seen, labels) in self.seen.items():
            asked = [name_question(self.things[i]) for i in labels.tolist()]
            hits = 0
            for part, questions, wanted in zip(
                seen.split(50), (asked[i : i + 50] for i in range(0, len(asked), 50)), labels.split(50), strict=True
            ):
                image, rows = embed(answerer.model, part, (1, 1), False, 0.0)
                before, positions, bias = answerer.prompt(image, questions, CANVAS, rows)
                mask = answerer.model.model.embed_tokens(torch.full((len(part), CANVAS), answerer.mask))
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    logits = answer_logits(answerer.model, torch.cat((before, mask), 1), positions, bias, CANVAS)
                names = name_ids(answerer.tokenizer, self.things)[0][wanted]
                hits += int((logits[:, 0].argmax(1) == names).sum())
            line += f" {style} {hits / len(labels):.3f}"
        return line


def fit(
    model: LladaV, answerer: Answerer, bank: Bank, things: list[Thing], args: argparse.Namespace, rank: int
) -> None:
    """Trains for `args.minutes`; process 0 stores the running average of the weights."""
    body = model.model
    trained = [*body.layers.parameters(), *body.norm.parameters(), body.embed_tokens.weight, model.lm_head.weight]
    body.mm_projector.requires_grad_(False)  # type: ignore[union-attr]
    body.image_newline.requires_grad_(False)  # type: ignore[union-attr]
    frozen = Frozen(model, name_ids(answerer.tokenizer, things))
    average = copy.deepcopy(model)
    averaged = [
        *average.model.layers.parameters(),
        *average.model.norm.parameters(),
        average.model.embed_tokens.weight,
        average.lm_head.weight,
    ]
    shown = Answerer(average, answerer.tokenizer)
    check = Check(model, args, things, 200) if rank == 0 else None
    if check:
        print("written" + check(shown), flush=True)
    optimiser = torch.optim.AdamW(trained, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    rng, layouts = random.Random(args.seed * args.processes + rank), random.Random(args.seed)
    began, step, done, losses, count, checked = time.monotonic(), 0, 0.0, 0.0, 0, 0.0
    while done < 1:
        rate = args.rate * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, done))))
        for group in optimiser.param_groups:
            group["lr"] = rate
        drawn = batch(bank, things, args.batch // args.processes, rng, layouts)
        # The end of training sees prompts as they are in use.
        image, rows = embed(model, drawn.crops, drawn.grid, done < args.thin, args.noise)
        loss = diffusion_loss(answerer, image, rows, drawn.asked)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        frozen.apply()
        done = reduce_gradients(model, (time.monotonic() - began) / (args.minutes * 60))
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        step, losses, count = step + 1, losses + float(loss.detach()), count + 1
        with torch.no_grad():
            momentum = min(0.997, (step + 1) / (step + 20))
            torch._foreach_lerp_(averaged, trained, 1 - momentum)
        if check and (step % 100 == 0 or done >= 1):
            elapsed = time.monotonic() - began
            line = f"step {step} {elapsed:.0f}s {step * args.batch / elapsed:.0f}/s loss {losses / count:.4f}"
            losses, count = 0.0, 0
            if elapsed - checked > 120 or done >= 1:
                checked = elapsed
                line += check(shown)
                save_checkpoint(average, answerer.tokenizer, args.out / "checkpoint")
            print(line, flush=True)


def train(rank: int, args: argparse.Namespace) -> None:
    """One of `args.processes` processes; see `train_tower.train`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{args.out}/rendezvous", rank=rank, world_size=args.processes)
    F.scaled_dot_product_attention = plain_attention  # type: ignore[assignment]
    things = [t for t in load_things(args.data).values() if t.concrete]
    torch.manual_seed(args.seed)
    pictures = Pictures(args, things)
    if args.resume:
        model, tokenizer = load_narrower(args.resume)
    else:
        tokenizer = train_tokenizer(things)
        model = new_model(tokenizer)
        write_language(model, tokenizer, things, start(model, args.tower, pictures, things, args.start_batches))
    model.train()
    torch.manual_seed(args.seed + 1 + rank)
    stored = args.out / f"seen-{rank}.pt"
    if stored.exists():
        bank = torch.load(stored, weights_only=False)
    else:
        began = time.monotonic()
        bank = Bank(model, pictures, tuple(n // args.processes for n in args.pictures))
        torch.save(bank, stored)
        print(f"process {rank} looked at pictures for {time.monotonic() - began:.0f}s", flush=True)
    torch.manual_seed(args.seed)
    z = bank.small.rows[..., :DIRECTIONS].float().mean((1, 2))
    write_meanings(model, tokenizer, things, z, bank.small.labels[:, 0])
    for parameter in model.parameters():
        dist.broadcast(parameter.data, 0)
    torch.manual_seed(args.seed + 1 + rank)
    fit(model, Answerer(model, tokenizer), bank, things, args, rank)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder")
    parser.add_argument("--cache", type=Path, required=True, help="folder for rendered drawings")
    parser.add_argument("--tower", type=Path, help="tower.pt of train_tower.py")
    parser.add_argument("--resume", type=Path, help="go on from a checkpoint made before there was meanings.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint/")
    parser.add_argument("--minutes", type=float, default=58)
    parser.add_argument("--thin", type=float, default=0.85, help="share of the time with thinned-out prompts")
    parser.add_argument("--pictures", type=int, nargs=3, default=(60000, 8000, 3000), help="small, large, of a layout")
    parser.add_argument("--start-batches", type=int, default=60, help="of 128 drawings, to write the connector from")
    parser.add_argument("--noise", type=float, default=0.3, help="spread of a random error of z")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64, help="pictures per step of all processes together")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "rendezvous").unlink(missing_ok=True)
    mp.spawn(train, args=(args,), nprocs=args.processes)


if __name__ == "__main__":
    main()
