"""Holds a bundle's results against those of the authors' code and writes the tables of `docs/parity.md`.

    python -m benchmarks.parity ../shared docs/parity.md

The argument is the folder that holds `parity/goldens.json`, which is not part of this repository.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.golden import (
    CONNECTOR_TOLERANCE,
    FEATURE_TOLERANCE,
    LOGIT_TOLERANCE,
    GoldenSet,
    applies,
    config_of,
    replay,
)
from benchmarks.pages import replace_parts
from lladav.manifest import Precision
from lladav.runtime.images import pixel_values
from lladav.runtime.sessions import open_session


def components(golden: GoldenSet) -> Iterator[str]:
    """Largest absolute error of every part, in fp32 and fp16."""
    yield "| part | cases | fp32 error | tolerance | fp16 error |"
    yield "|---|---|---|---|---|"
    precisions: tuple[Precision, Precision] = ("fp32", "fp16")
    pipelines = [golden.pipeline(precision=precision) for precision in precisions]
    pictures, merges, passes = (
        golden.facts["vis"]["features"],
        golden.facts["merge"]["cases"],
        golden.facts["fwd"]["cases"],
    )

    def row(part: str, cases: int, tolerance: float, errors: list[float]) -> str:
        assert errors[0] < tolerance, part
        return f"| {part} | {cases} | {errors[0]:.1e} | {tolerance:.0e} | {errors[1]:.1e} |"

    features, connected = [], []
    for pipeline in pipelines:
        session = open_session(pipeline.bundle, "vision_encoder", None)
        crops = {name: golden.crops(name, pipeline) for name in pictures}
        features.append(
            max(
                golden.error(pictures[name]["features"], session.run(None, {"pixel_values": pixel_values(crop)})[0])
                for name, crop in crops.items()
            )
        )
        connected.append(
            max(
                golden.error(pictures[n]["connector"], pipeline.pictures.encoder.encode(c)[0]) for n, c in crops.items()
            )
        )
    yield row("vision tower", len(pictures), FEATURE_TOLERANCE, features)
    yield row("connector", len(pictures), CONNECTOR_TOLERANCE, connected)
    merged = [max(golden.error(c["embeds"], golden.merged_prompt(p, c)[0]) for c in merges.values()) for p in pipelines]
    yield row("merged prompt", len(merges), CONNECTOR_TOLERANCE, merged)
    logits = [max(golden.error(passes[n]["logits_tail"], golden.logits(p, n)) for n in passes) for p in pipelines]
    yield row("logits", len(passes), LOGIT_TOLERANCE, logits)


def answers(golden: GoldenSet) -> Iterator[str]:
    """Every case of generation in fp32, and its decisions replayed in fp32 and fp16."""
    yield "| case | P + G | passes | fp32 answer | fp32 confidence error | fp16 same token | fp16 same position |"
    yield "|---|---|---|---|---|---|---|"
    totals = np.zeros(3, np.int64)
    for name, case in golden.cases.items():
        if not applies(case):
            continue
        images = golden.images(case.get("images", []))
        wide = golden.pipeline(case["checkpoint"], case["rows"])
        answer = wide.generate(prompt_ids=case["ids"], images=images, config=config_of(case))
        same = list(answer.token_ids) == case["output_ids"]
        exact = replay(wide, case, images)
        half = replay(golden.pipeline(case["checkpoint"], case["rows"], "fp16"), case, images)
        totals += (half.picks, half.same_token, half.same_position)
        yield (
            f"| `{name}` | {case['prompt_len']} + {case['gen_length']} | {len(answer.steps)} "
            f"| {'identical' if same else f'{exact.narrow} narrow decisions differ'} "
            f"| {exact.confidence_error:.1e} | {half.same_token}/{half.picks} | {half.same_position}/{half.picks} |"
        )
    picks, tokens, positions = totals.tolist()
    yield f"| **all** | | | | | **{tokens / picks:.2%}** | **{positions / picks:.2%}** |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder that holds parity/goldens.json")
    parser.add_argument("page", type=Path, help="Markdown page whose tables are replaced")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as workspace:
        golden = GoldenSet(options.shared, Path(workspace))
        replace_parts(options.page, {"parts": components(golden), "answers": answers(golden)})


if __name__ == "__main__":
    main()
