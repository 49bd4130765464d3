"""Stage 1: the vision tower alone learns to name a thing whatever the drawing style.

The tower is `VisionTransformer` of `export/reference.py`, trained from scratch with a
classifier on its mean feature that is thrown away afterwards. The schedule follows wall
time, not steps, so that a run fits its budget on any machine.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.demo_checkpoint import augment
from benchmarks.demo_checkpoint.drawings import HELD_OUT_STYLES, TRAIN_STYLES, Thing, load_style, load_things
from benchmarks.demo_checkpoint.results import add_results
from benchmarks.demo_checkpoint.sizes import VISION
from benchmarks.demo_checkpoint.template import EMBEDDING, Template, discriminant_start, transplant
from export.reference import VisionTransformer

# Share of a style's drawings used per epoch: two Fluent sets show the same art as a third.
STYLE_SHARE = {"fluent-emoji": 0.6, "fluent-emoji-3d": 0.6}


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, enable_gqa: bool = False
) -> Tensor:
    """Same result as `scaled_dot_product_attention`; for 64 tokens its backward is 1.6x faster on CPUs."""
    del enable_gqa
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1).to(v.dtype) @ v


class TowerTrainer(nn.Module):
    """The tower with a classifier on the part of its mean feature that holds the template's y."""

    def __init__(self, template: Template) -> None:
        super().__init__()
        self.tower = VisionTransformer(VISION)
        transplant(template, self.tower)
        self.norm = copy.deepcopy(template.norm)
        self.name = copy.deepcopy(template.name)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, 3, S, S]` in -1..1 -> name logits, and no penalty."""
        y = self.tower(pixels).float().mean(1)[:, -EMBEDDING:]
        logits: Tensor = self.name(self.norm(y))
        return logits, logits.new_zeros(())


@torch.no_grad()
def accuracy(model: nn.Module, drawings: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 share on upright drawings on white."""
    model.eval()
    hits = torch.zeros(2)
    for x, y in zip(drawings.split(256), labels.split(256), strict=True):
        x = x.float() / 255
        image = F.interpolate(x[:, :3] + 1 - x[:, 3:], size=VISION.image_size, mode="bilinear", antialias=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(image * 2 - 1)[0].float()
        top = logits.topk(5).indices == y[:, None]
        hits += torch.stack((top[:, 0].sum(), top.sum()))
    model.train()
    return float(hits[0] / len(labels)), float(hits[1] / len(labels))


def load_bank(
    root: Path, cache: Path, styles: tuple[str, ...], things: list[Thing], size: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Style -> premultiplied drawings `[N, 4, size, size]` uint8 and indices `[N]` into `things`."""
    index = {t.code: i for i, t in enumerate(things)}
    bank = {}
    for name in styles:
        style = load_style(root, name, cache)
        picked = [i for i, code in enumerate(style.codes) if code in index]
        bank[name] = (
            augment.premultiply(torch.from_numpy(style.pixels[picked]), size),
            torch.tensor([index[style.codes[i]] for i in picked]),
        )
    return bank


def reduce_gradients(model: nn.Module, progress: float) -> float:
    """Averages gradients over processes; the progress rides along, so that all agree on it."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    flat = torch.cat([*(p.grad.flatten() for p in parameters if p.grad is not None), torch.tensor([progress])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for p, part in zip(parameters, flat[:-1].split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)
    return float(flat[-1])


@dataclasses.dataclass(frozen=True)
class Stage:
    """How one network is trained.

    Attributes:
        name: shown in the log.
        minutes: length of the schedule.
        rate: highest learning rate.
        decay: weight decay of matrices.
        strength: amount of augmentation.
        smoothing: label smoothing.
    """

    name: str
    minutes: float
    rate: float
    decay: float
    strength: float
    smoothing: float


@dataclasses.dataclass(frozen=True)
class Data:
    """Training drawings `[N, 4, H, H]` in two sizes, labels `[N]`, share used per epoch, drawings for the log."""

    drawings: Tensor
    small: Tensor
    labels: Tensor
    share: Tensor
    shown: dict[str, tuple[Tensor, Tensor]]


def load_data(args: argparse.Namespace, things: list[Thing], held_out: bool) -> Data:
    """Every concrete drawing of the training styles, and of the held-out ones for the log."""
    bank = load_bank(args.data, args.cache, TRAIN_STYLES, things, 112)
    shown = load_bank(args.data, args.cache, HELD_OUT_STYLES, things, 112) if held_out else {}
    drawings = torch.cat([d for d, _ in bank.values()])
    # Two sizes of every drawing stand in for a mip map: grid_sample does not antialias.
    small = torch.cat([augment.premultiply(_straight(d), 56) for d in drawings.split(256)])
    share = torch.cat([torch.full((len(y),), STYLE_SHARE.get(s, 1.0)) for s, (_, y) in bank.items()])
    return Data(drawings, small, torch.cat([y for _, y in bank.values()]), share, {**shown, "noto": bank["noto"]})


def fit(model: nn.Module, data: Data, stage: Stage, args: argparse.Namespace, rank: int) -> nn.Module:
    """Trains `model` for `stage.minutes`; returns the running average of its weights."""
    average = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": stage.decay},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )
    shuffle = torch.Generator().manual_seed(args.seed)
    start, step, epoch, done = time.monotonic(), 0, 0, 0.0
    while done < 1:
        order = (torch.rand(len(data.share), generator=shuffle) < data.share).nonzero().flatten()
        order = order[torch.randperm(len(order), generator=shuffle)]
        total, count = 0.0, 0
        for batch in order[: len(order) // args.batch * args.batch].split(args.batch):
            picked = batch[rank :: args.processes]
            rate = stage.rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, done)))
            for group in optimiser.param_groups:
                group["lr"] = rate
            source, scale = (data.small, (0.45, 0.7)) if torch.rand(()) < 0.1 else (data.drawings, (0.8, 1.1))
            # The end of training sees nearly clean pictures, as the tower will in use.
            image = augment.crops(
                source[picked], VISION.image_size, scale, stage.strength * (1 if done < 0.8 else 0.6)
            )[0]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits, penalty = model(image * 2 - 1)
            loss = F.cross_entropy(logits.float(), data.labels[picked], label_smoothing=stage.smoothing) + penalty
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            done = reduce_gradients(model, (time.monotonic() - start) / (stage.minutes * 60))
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step += 1
            with torch.no_grad():
                momentum = min(0.998, (step + 1) / (step + 20))
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - momentum)
            total, count = total + float(loss.detach()), count + 1
            if done >= 1:
                break
        epoch += 1
        if rank:
            continue
        elapsed = time.monotonic() - start
        speed = step * args.batch / elapsed
        line = f"{stage.name} epoch {epoch} step {step} {elapsed:.0f}s {speed:.0f}/s loss {total / count:.3f}"
        if epoch % 6 == 0 or done >= 1:
            for style, (d, y) in data.shown.items():
                line += " {} {:.3f}/{:.3f}".format(style, *accuracy(average, d, y))
            torch.save(average.state_dict(), args.out / f"{stage.name}.pt")
        print(line, flush=True)
    return average


def measure(args: argparse.Namespace, things: list[Thing]) -> None:
    """Writes top-1 and top-5 of a trained tower and its classifier to `results.json`."""
    model = TowerTrainer(Template(len(things)))
    model.load_state_dict(torch.load(args.out / "tower.pt", weights_only=True))
    styles = load_bank(args.data, args.cache, (*HELD_OUT_STYLES, "noto"), things, 112)
    shares = {style: accuracy(model, d, y) for style, (d, y) in styles.items()}
    found = {style: {"top1": round(one, 4), "top5": round(five, 4)} for style, (one, five) in shares.items()}
    add_results(args.out / "results.json", "tower with its training classifier", found)


@torch.no_grad()
def start_template(template: Template, data: Data, args: argparse.Namespace) -> None:
    """Gathers the statistics of augmented drawings that `discriminant_start` needs, in all processes."""
    width, classes = template.w.shape[0] * template.w.shape[1], template.name.out_features
    scatter, total = torch.zeros(width, width), torch.zeros(width)
    counts, sums = torch.zeros(classes), torch.zeros(classes, width)
    for _ in range(args.discriminant_batches):
        picked = torch.multinomial(data.share, 256)
        image = augment.crops(data.drawings[picked], VISION.image_size, (0.8, 1.1), 0.5)[1]
        e = template.local(image * 2 - 1).flatten(1)
        scatter += e.T @ e
        total += e.sum(0)
        counts.index_add_(0, data.labels[picked], torch.ones(len(picked)))
        sums.index_add_(0, data.labels[picked], e)
    for part in (scatter, total, counts, sums):
        dist.all_reduce(part)
    discriminant_start(template, total, scatter, counts.clamp(min=1), sums)


def train(rank: int, args: argparse.Namespace) -> None:
    """One of `args.processes` processes.

    A process per core with one thread each waits for the others once per step; threads of one
    process would wait hundreds of times, which costs half the speed on a machine in use.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{args.out}/rendezvous", rank=rank, world_size=args.processes)
    F.scaled_dot_product_attention = plain_attention  # type: ignore[assignment]
    torch.manual_seed(args.seed)
    things = [t for t in load_things(args.data).values() if t.concrete]
    data = load_data(args, things, held_out=rank == 0)
    template = Template(len(things))
    torch.manual_seed(args.seed + 1 + rank)
    if args.template:
        template.load_state_dict(torch.load(args.template, weights_only=True))
    else:
        start_template(template, data, args)
        template = fit(template, data, Stage("template", args.template_minutes, 2e-3, 0.02, 0.7, 0.1), args, rank)
    torch.manual_seed(args.seed)
    model = TowerTrainer(template)  # type: ignore[arg-type]
    if rank == 0:
        for style, (d, y) in data.shown.items():
            print("transplanted {} {:.3f}/{:.3f}".format(style, *accuracy(model, d, y)), flush=True)
    torch.manual_seed(args.seed + 1 + rank)
    fit(model, data, Stage("tower", args.tower_minutes, args.rate, 0.05, args.strength, 0.1), args, rank)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder")
    parser.add_argument("--cache", type=Path, required=True, help="folder for rendered drawings")
    parser.add_argument("--out", type=Path, required=True, help="folder for template.pt and tower.pt")
    parser.add_argument("--template-minutes", type=float, default=4)
    parser.add_argument("--template", type=Path, help="template.pt of an earlier run, to skip its training")
    parser.add_argument("--tower-minutes", type=float, default=38)
    parser.add_argument("--measure", action="store_true", help="only measure tower.pt of an earlier run")
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--strength", type=float, default=0.8, help="augmentation of the tower's pictures, 0 to 1")
    parser.add_argument("--discriminant-batches", type=int, default=40)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128, help="drawings per step of all processes together")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "rendezvous").unlink(missing_ok=True)
    if not args.measure:
        mp.spawn(train, args=(args,), nprocs=args.processes)
    measure(args, [t for t in load_things(args.data).values() if t.concrete])


def _straight(premultiplied: Tensor) -> Tensor:
    """`[N, 4, H, W]` uint8 premultiplied -> `[N, H, W, 4]` uint8 straight alpha."""
    alpha = premultiplied[:, 3:].float().clamp(min=1)
    colour = (premultiplied[:, :3].float() * 255 / alpha).clamp(0, 255).byte()
    return torch.cat((colour, premultiplied[:, 3:]), 1).permute(0, 2, 3, 1)


if __name__ == "__main__":
    main()
