"""Golden answers of the authors' code, token for token in fp32, by the loop and the kernels of the GPU on the host."""

from __future__ import annotations

import pytest
from golden_cases import CASES
from host_device import HostDevice
from host_executable import HostExecutable

from benchmarks.golden import GoldenSet, applies, config_of
from lladav.memory_plan import Sizes
from lladav.runtime import Pipeline
from lladav.runtime.gpu.backend import GpuBackend

EXACT = [name for name, case in CASES.items() if applies(case) and case["exact"]]
# One of each kind; the others, which take minutes together, with `-m slow`.
QUICK = ("suffix_and_stop", "image_32_32_32", "prompt_cache_4_cfg", "mask_id_in_prompt")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EXACT]
)
def test_answer_is_the_reference_answer(golden_set: GoldenSet, compiled: None, name: str) -> None:  # noqa: ARG001
    case = golden_set.cases[name]
    cpu = golden_set.pipeline(case["checkpoint"], case["rows"])
    bundle, device = cpu.bundle, HostDevice(4 << 30)
    buckets = bundle.manifest.buckets
    backend = GpuBackend(
        "host",
        device,
        bundle,
        lambda graph: HostExecutable(device, bundle, graph),
        Sizes(2 if case.get("cfg_scale") else 1, buckets.prompt[-1], buckets.canvas[-1], buckets.tiles[-1]),
    )
    pipeline = Pipeline(bundle, backend)
    images = golden_set.images(case.get("images", []))
    answer = pipeline.generate(prompt_ids=case["ids"], images=images, config=config_of(case))

    assert list(answer.token_ids) == case["output_ids"]
    assert len(answer.steps) == case["n_forward"]
    for step, expected in zip(answer.steps, case["trace"], strict=True):
        assert dict(zip(step.positions, step.tokens, strict=True)) == dict(
            zip(expected["pos"], expected["tok"], strict=True)
        )
    # Masks inside the prompt are the host's to decide.
    assert ("lladav_commit" in device.kernels) == (name != "mask_id_in_prompt")
