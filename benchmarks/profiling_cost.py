"""What listening to answers costs: pairs of answers, one recorded and one not, in turns.

    python -m benchmarks.profiling_cost BUNDLE

Processor time on one thread, since other processes share the machine. Prints JSON: the ratio of the
pairs' sums and its standard error, and nanoseconds of a span that nobody listens to, with how many an answer has.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import timeit
from pathlib import Path
from time import process_time

from lladav.runtime import GenerationConfig, Pipeline
from lladav.runtime.profiling import Asking, synthetic
from lladav.runtime.profiling.recorder import record
from lladav.runtime.tracing import span


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--preset", default="quality")
    options = parser.parse_args()
    pipeline = Pipeline.load(options.bundle, threads=1, feature_cache_bytes=0)
    asking = synthetic(pipeline, GenerationConfig(preset=options.preset))
    recorded, plain = [], []
    spans = 0
    for number in range(options.pairs + 2):
        times = {}
        for listening in (number % 2 == 0, number % 2 == 1):
            began = process_time()
            spans = _answer(pipeline, asking, listening=listening) or spans
            times[listening] = process_time() - began
        if number >= 2:
            recorded.append(times[True])
            plain.append(times[False])
    differences = [a - b for a, b in zip(recorded, plain, strict=True)]
    mean = statistics.fmean(plain)
    off = min(timeit.repeat(_nobody, number=100_000, repeat=5)) / 100_000
    print(
        json.dumps(
            {
                "pairs": options.pairs,
                "answer_ms": mean * 1e3,
                "recorded": statistics.fmean(recorded) / mean,
                "standard_error": statistics.stdev(differences) / math.sqrt(options.pairs) / mean,
                "median_of_ratios": statistics.median(a / b for a, b in zip(recorded, plain, strict=True)),
                "span_when_off_ns": off * 1e9,
                "spans_per_answer": spans,
                "off": off * spans / mean,
            },
            indent=1,
        )
    )


def _answer(pipeline: Pipeline, asking: Asking, *, listening: bool) -> int:
    """How many spans were heard."""
    if not listening:
        for _ in asking.ask(pipeline):
            pass
        return 0
    heard = record(asking.ask(pipeline))
    return len(heard.spans) + sum(len(step.spans) for step in heard.steps)


def _nobody() -> None:
    with span("nothing"):
        pass


if __name__ == "__main__":
    main()
