"""The machine's rates, and passes beside what they allow."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
from machine_rates import even_rates

from lladav.bundle import Bundle
from lladav.costs import Roofline, pass_cost
from lladav.errors import BackendError
from lladav.handed_on import handed_on
from lladav.linear_layers import Numbers
from lladav.manifest import Quantization
from lladav.memory_plan import Sizes
from lladav.products import PassName
from lladav.runtime.profiling import probe as probing
from lladav.runtime.profiling import product_rates
from lladav.runtime.profiling.prediction import PredictedPass, predict_here
from lladav.runtime.profiling.probe import Probe, measure, measure_apart, probe
from lladav.runtime.profiling.product_rates import RatePoint
from lladav.runtime.profiling.roofline import held_up_by, predicted_ms, roofline

RATES = even_rates(bandwidth=1e9, operations=1e10)


CURVE = [[1, 1e9], [8, 4e9]]
EVERY = dict.fromkeys(product_rates.FORMS, CURVE)


def kept(**change: object) -> str:
    """A file of rates, with something else in it."""
    return json.dumps(RATES.model_dump(mode="json") | {"products": EVERY} | change)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(probing.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    return tmp_path / "lladav" / "rates"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Threads of every probe that is really made."""
    asked: list[int] = []

    def instead(threads: int) -> Probe:
        asked.append(threads)
        return RATES.model_copy(update={"threads": threads, "bandwidth": 1e9 * len(asked)})

    monkeypatch.setattr(probing, "measure_apart", instead)
    return asked


def test_rates_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_COPIED", 1 << 20)
    monkeypatch.setattr(product_rates, "LAYER", (256, 512))
    monkeypatch.setattr(product_rates, "ATTENTION", (2, 64, 16))
    monkeypatch.setattr(product_rates, "SMALL", ((256, 256), (512, 256)))
    found = measure(1, seconds=0.1)
    # No machine that runs this is slower, and none will be a thousand times as fast.
    assert 1e8 < found.bandwidth < 1e13
    assert 1e8 < found.operations < 1e14
    assert found.threads == 1
    assert set(found.products) == set(product_rates.FORMS)
    for form, curve in found.products.items():
        assert [point.rows for point in curve] == list(product_rates.ROWS)
        assert found.highest(form) >= max(point.operations for point in curve) > 1e6
    assert set(found.integers) == set(product_rates.INTEGERS)
    assert all(found.highest(form) >= rate > 1e6 for form, rate in found.integers.items())


def test_a_process_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing.sys, "executable", shutil.which("false"))
    with pytest.raises(BackendError, match="exit code 1"):
        measure_apart(1)


def program(path: Path, said: str) -> str:
    """In place of the interpreter."""
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    path.chmod(0o755)
    return str(path)


def test_what_libraries_print_before_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = f"a library greets\n{RATES.model_dump_json()}"
    monkeypatch.setattr(probing.sys, "executable", program(tmp_path / "greets", said))
    assert measure_apart(1) == RATES


@pytest.mark.parametrize("last", ["", "a library says goodbye"])
def test_a_process_that_says_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, last: str
) -> None:
    monkeypatch.setattr(probing.sys, "executable", program(tmp_path / "other", last))
    with pytest.raises(BackendError, match=f"could not be read: '{last}'"):
        measure_apart(1)


@pytest.mark.slow
def test_rates_are_measured_in_a_process_of_its_own() -> None:
    assert measure_apart(1).threads == 1


def test_rates_are_kept(cache: Path, measured: list[int]) -> None:
    first = probe(1)
    assert probe(1) == first
    assert measured == [1]
    assert len(list(cache.iterdir())) == 1
    assert probe(2).threads == 2
    assert probe(1, renew=True).bandwidth != first.bandwidth
    assert measured == [1, 2, 1]
    assert probe(1).bandwidth == 3e9


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", '{"threads": 1}'),
        *(
            kept(**change)
            for change in (
                {"bandwidth": -1},
                {"integers": {}},
                {"products": {}},
                {"products": dict.fromkeys(product_rates.FORMS[1:], CURVE)},
                {"products": EVERY | {"int4": []}},
                {"products": EVERY | {"int4": [[1, 0]]}},
                {"products": EVERY | {"int4": [[8, 1], [1, 1]]}},
            )
        ),
    ],
)
def test_damaged_rates_are_measured_again(cache: Path, measured: list[int], text: str) -> None:
    probe(1)
    (file,) = cache.iterdir()
    file.write_text(text)
    probe(1)
    assert measured == [1, 1]
    assert probe(1).threads == 1
    assert measured == [1, 1]


def test_rates_that_are_whole_are_read(cache: Path, measured: list[int]) -> None:
    probe(1)
    (file,) = cache.iterdir()
    file.write_text(kept(bandwidth=5))
    assert probe(1).bandwidth == 5
    assert measured == [1]


@pytest.mark.usefixtures("measured")
def test_rates_need_no_folder(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("in the way")
    assert probe(1).bandwidth == 1e9
    assert cache.read_text() == "in the way"


def test_roofline_is_that_of_the_cpu(tiny_bundle: Path) -> None:
    manifest, sizes = Bundle.open(tiny_bundle).manifest, Sizes(1, 128, 32, 0)
    found = roofline(manifest, "step", sizes, RATES, rows=5)
    cost = pass_cost(manifest, "step", sizes, Numbers("fp32", cpu=True), rows=5)
    assert (found.bytes, found.operations) == (cost.bytes, cost.operations)
    assert found.ms == pytest.approx(1e3 * max(cost.bytes / 1e9, cost.operations / 1e10))
    pictures = roofline(manifest, "vision_encoder", Sizes(1, 0, 0, 4), RATES)
    assert pictures.ms > roofline(manifest, "vision_encoder", Sizes(1, 0, 0, 1), RATES).ms


def test_float16_is_widened_on_the_cpu(tiny_bundle: Path) -> None:
    manifest, sizes = Bundle.open(tiny_bundle).manifest, Sizes(1, 128, 32, 0)
    half = manifest.model_copy(update={"precision": "fp16"})
    assert roofline(half, "step", sizes, RATES) == roofline(manifest, "step", sizes, RATES)


def test_every_prompt_bucket_has_one(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    found = list(predict_here(bundle, RATES, canvas=32))
    assert [one.prompt for one in found] == list(bundle.manifest.buckets.prompt)
    first = roofline(bundle.manifest, "refresh", Sizes(1, found[0].prompt, 32, 0), RATES)
    expected = predicted_ms(bundle.manifest, "refresh", Sizes(1, found[0].prompt, 32, 0), RATES)
    assert found[0].refresh == PredictedPass(expected, first, None)
    assert found[0].refresh.error is None
    assert all(a.step.ms < b.step.ms for a, b in itertools.pairwise(found))


def test_error_is_a_share_of_what_was_measured() -> None:
    assert PredictedPass(4.0, Roofline(1, 1, 3.0, "bandwidth"), 5.0).error == pytest.approx(-0.2)


def test_a_prediction_adds_up_what_a_limit_overlaps(tiny_bundle: Path) -> None:
    manifest, sizes = Bundle.open(tiny_bundle).manifest, Sizes(1, 128, 32, 0)
    kinds: tuple[PassName, ...] = ("refresh", "step")
    for kind in kinds:
        cost = pass_cost(manifest, kind, sizes, Numbers("fp32", cpu=True))
        between = handed_on(manifest, kind, sizes, Numbers("fp32", cpu=True))
        found = predicted_ms(manifest, kind, sizes, RATES)
        assert found == pytest.approx(1e3 * (cost.operations / 1e10 + between / 1e9))


def test_integers_have_limits_of_their_own(tiny_bundle: Path) -> None:
    manifest, sizes = Bundle.open(tiny_bundle).manifest, Sizes(1, 128, 32, 0)
    integers = manifest.model_copy(update={"quantization": Quantization(form="w8")})
    twice = RATES.model_copy(update={"products": RATES.products | {"w8a8": (RatePoint(1, 2e10),)}})
    least = roofline(manifest, "refresh", sizes, twice)
    assert least == roofline(manifest, "refresh", sizes, RATES)
    assert least.bound == "arithmetic"
    assert least.ms / 2 < roofline(integers, "refresh", sizes, twice).ms < least.ms


@pytest.mark.parametrize(
    ("graph_ms", "host_ms", "expected"),
    [(5, 1, "bandwidth"), (9, 1, "launch"), (5, 4.5, "host"), (3, 0, "bandwidth")],
)
def test_the_largest_part_holds_a_pass_up(graph_ms: float, host_ms: float, expected: str) -> None:
    assert held_up_by(Roofline(1, 1, 4.0, "bandwidth"), graph_ms, host_ms) == expected
