"""Loading and running plans, with a library that only remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from played_library import SCRATCH, Library
from unbuilt import engine_record

import lladav.engines.execution
import lladav.engines.library
from lladav.bundle import Bundle
from lladav.engines.execution import LoadedEngine, load_plan
from lladav.engines.here import describe
from lladav.engines.layer_times import LayerTime, time_layers
from lladav.engines.profiles import graph_profiles
from lladav.errors import BackendError, EngineError
from lladav.records import EngineRecord, read_records

rtx_only = pytest.mark.parametrize("loaded", [True], indirect=True, ids=["rtx"])
STREAM = 77
PLAN = b"a plan that nothing can run"


class Placed(NamedTuple):
    address: int
    shape: tuple[int, ...]


class Loaded(NamedTuple):
    library: Library
    load: Callable[[], LoadedEngine]
    bundle: Path
    record: EngineRecord

    @property
    def compiled(self) -> Path:
        return self.bundle / "engines" / "rtx-40" / "denoiser.cache"


@pytest.fixture(params=[False, True], ids=["tensorrt", "rtx"])
def loaded(request: pytest.FixtureRequest, fp16_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    library = Library(rtx=request.param)
    monkeypatch.setattr(lladav.engines.library, "_logs", {})
    monkeypatch.setattr(lladav.engines.execution, "load_library", lambda _: library)
    plan = fp16_bundle / "engines" / "rtx-40" / "denoiser.plan"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(PLAN)
    bundle = Bundle.open(fp16_bundle)
    record = engine_record(
        plan=PLAN,
        library=library.__name__,
        library_version=library.__version__,
        bundle=bundle.manifest.sha256,
        profiles=graph_profiles(bundle.manifest)["denoiser"],
    )
    return Loaded(library, lambda: load_plan(record, bundle, STREAM), fp16_bundle, record)


def step_tensors(bundle: Path, **changes: int) -> dict[str, Placed]:
    """A step's tensors at made-up addresses; empty ones have none."""
    sizes = {"batch": 1, "window": 32, "past": 64, "keys": 96, "rows": 32, "kept": 0, **changes}
    spec = Bundle.open(bundle).manifest.graphs["denoiser"]
    tensors = {}
    for number, tensor in enumerate((*spec.inputs, *spec.outputs), start=1):
        shape = tuple(size if isinstance(size, int) else sizes[size] for size in tensor.shape)
        tensors[tensor.name] = Placed(0 if 0 in shape else 256 * number, shape)
    return tensors


def bind(loaded: Loaded, **changes: int) -> tuple[LoadedEngine, Any]:
    tensors = step_tensors(loaded.bundle, **changes)
    loaded.library.outputs = {name: tensor.shape for name, tensor in tensors.items()}
    engine = loaded.load()
    return engine, engine.bind(tensors, profile="step", scratch=1 << 30)


def test_pass_is_bound_and_run(loaded: Loaded) -> None:
    engine, bound = bind(loaded)
    assert loaded.library.read == PLAN
    assert (engine.weights, engine.scratch) == (len(PLAN), SCRATCH)
    calls = loaded.library.contexts[0].calls
    tensors = step_tensors(loaded.bundle)
    assert calls[0] == ("set_optimization_profile_async", 1, STREAM)
    assert ("set_input_shape", "inputs_embeds", (1, 32, 32)) in calls
    addresses = {call[1]: call[2] for call in calls if call[0] == "set_tensor_address"}
    assert addresses.keys() == tensors.keys()
    assert all(addresses[name] == tensor.address for name, tensor in tensors.items() if tensor.address)
    assert all(addresses.values())
    assert ("set_device_memory", 1 << 30, SCRATCH) in calls
    assert not any(call[0] == "execute_async_v3" for call in calls)
    assert bound.capturable
    bound.enqueue()
    assert calls[-1] == ("execute_async_v3", STREAM)


def test_memory_of_contexts_is_ours(loaded: Loaded) -> None:
    bind(loaded)
    settings = loaded.library.settings
    assert (settings if isinstance(settings, str) else settings.strategy) == "user managed"


def test_shape_of_no_profile(loaded: Loaded) -> None:
    with pytest.raises(
        BackendError, match=r"past_key_values.0.key of shape .*: step takes \(1 to 2, 2, 64 to 128, 16\)"
    ):
        bind(loaded, past=32)
    assert not loaded.library.contexts


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("create_execution_context", "refuses to prepare step"),
        ("set_optimization_profile_async", "refuses the profile step"),
        ("set_input_shape", "refuses inputs_embeds of shape"),
        ("set_tensor_address", "refuses the address of inputs_embeds"),
        ("infer_shapes", "refuses step without rows"),
        ("get_tensor_shape", r"refuses logits of shape .*, which is \(0,\) in step"),
    ],
)
def test_library_that_refuses_to_bind(loaded: Loaded, call: str, said: str) -> None:
    loaded.library.refusing = call
    with pytest.raises(BackendError, match=said) as caught:
        bind(loaded)
    assert "engines/rtx-40/denoiser.plan" in caught.value.what


def test_library_that_refuses_to_run(loaded: Loaded) -> None:
    _, bound = bind(loaded)
    loaded.library.refusing = "execute_async_v3"
    with pytest.raises(BackendError, match="refuses to run step"):
        bound.enqueue()


def test_plan_that_the_library_does_not_load(loaded: Loaded) -> None:
    loaded.library.refusing = "deserialize_cuda_engine"
    with pytest.raises(
        EngineError, match=r"does not load .*denoiser.plan, .* Serialization assertion failed"
    ) as caught:
        loaded.load()
    assert caught.value.cure == f"lladav build {loaded.bundle} --target rtx-40"


def test_truncated_plan(loaded: Loaded) -> None:
    (loaded.bundle / loaded.record.plan.path).write_bytes(PLAN[:-1])
    with pytest.raises(EngineError, match="has 26 bytes instead of 27"):
        loaded.load()
    assert loaded.library.read == b""


def test_library_without_a_gpu(loaded: Loaded) -> None:
    loaded.library.refusing = "Runtime"
    with pytest.raises(EngineError, match="cannot run here: factory function returned nullptr"):
        loaded.load()


def test_library_that_is_missing(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, loaded.record.library, None)
    with pytest.raises(EngineError, match="cannot be imported") as caught:
        load_plan(loaded.record, Bundle.open(loaded.bundle), STREAM)
    assert "pip install" in caught.value.cure


@rtx_only
def test_rtx_says_what_is_valid_and_capturable(loaded: Loaded) -> None:
    loaded.library.refusing = "is_stream_capturable"
    assert not bind(loaded)[1].capturable
    loaded.library.refusing = "get_engine_validity"
    with pytest.raises(EngineError, match="is not valid on this machine"):
        loaded.load()
    assert loaded.library.settings.dynamic_shapes_kernel_specialization_strategy == "eager"


@pytest.mark.parametrize("loaded", [False], indirect=True, ids=["tensorrt"])
def test_tensorrt_compiles_nothing_that_could_be_kept(loaded: Loaded) -> None:
    engine, _ = bind(loaded)
    engine.keep_compiled()
    assert not loaded.compiled.exists()


@pytest.mark.usefixtures("rtx")
def test_real_library_says_that_there_is_no_gpu(built_bundle: Path) -> None:
    if describe("tensorrt_rtx").gpu:
        pytest.skip("here is a GPU")
    record = read_records(built_bundle, "rtx-40")[0]
    with pytest.raises(EngineError, match=r"does not load .*connector.plan, .* is not valid on this machine"):
        load_plan(record, Bundle.open(built_bundle), STREAM)


@rtx_only
def test_what_was_compiled_is_kept_for_the_next_process(loaded: Loaded) -> None:
    engine, _ = bind(loaded)
    engine.keep_compiled()
    assert loaded.compiled.read_bytes() == b"kernel "
    again, _ = bind(loaded)
    again.keep_compiled()
    assert loaded.compiled.read_bytes() == b"kernel kernel "
    assert [path.name for path in loaded.compiled.parent.iterdir() if path.name.startswith(".")] == []


@rtx_only
def test_bundle_that_cannot_be_written_compiles_again(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise EngineError("read-only", cure="none")

    engine, _ = bind(loaded)
    monkeypatch.setattr(lladav.engines.execution, "staged_stream", refuse)
    engine.keep_compiled()
    assert not loaded.compiled.exists()


LAYERS = {"__myl_Fc_myl0_1": ["layers.0/mlp/up_proj", "layers.0/mlp/gate_proj"], "__myl_Cast_myl0_2": []}


def test_layers_are_timed_beside_the_pass(loaded: Loaded) -> None:
    loaded.library.layers = LAYERS
    _, bound = bind(loaded)
    ours, *_ = loaded.library.contexts
    before = list(ours.calls)
    first, second = bound.time_layers(2)
    assert first == second
    assert [(layer.name, layer.nodes, layer.ms) for layer in first] == [
        (name, frozenset(nodes), ms) for (name, nodes), ms in zip(LAYERS.items(), (0.5, 1.0), strict=True)
    ]
    # In a context of its own, since one that has a profiler keeps it.
    alone = loaded.library.contexts[-1]
    assert (ours.calls, ours.profiler) == (before, None)
    assert [call for call in alone.calls if call[0] == "execute_async_v3"] == 3 * [("execute_async_v3", STREAM)]
    assert [call for call in alone.calls if call[0] != "execute_async_v3"] == before[: len(alone.calls) - 3]


def test_library_that_refuses_to_run_for_the_profiler(loaded: Loaded) -> None:
    _, bound = bind(loaded)
    loaded.library.refusing = "execute_async_v3"
    with pytest.raises(BackendError, match="refuses to run step"):
        bound.time_layers(1)


def test_layers_of_all_profiles_at_their_tuned_sizes(loaded: Loaded) -> None:
    loaded.library.layers = LAYERS
    assert [layer.name for layer in loaded.load().layers()] == 2 * list(LAYERS)
    shapes = [
        {call[1]: call[2] for call in context.calls if call[0] == "set_input_shape"}
        for context in loaded.library.contexts
    ]
    profiles = loaded.record.profiles
    for shape, profile in zip(shapes, profiles, strict=True):
        assert shape["inputs_embeds"][:2] == (profile.sizes["batch"].tuned, profile.sizes["window"].tuned)


def test_real_profiler_hears_times(rtx: Any) -> None:
    def run() -> None:
        context.profiler.report_layer_time("layer", 0.25)

    inspector = SimpleNamespace(get_engine_information=lambda _: '{"Layers": ["layer"]}')
    context = SimpleNamespace(profiler=None)
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    assert time_layers(rtx, engine, context, run, 1) == ((LayerTime("layer", frozenset(), 0.25),),)
    assert isinstance(context.profiler, rtx.IProfiler)
