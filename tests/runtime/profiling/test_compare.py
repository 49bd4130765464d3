"""Two profiles beside each other."""

from __future__ import annotations

import pytest

from lladav.errors import ProfileError
from lladav.runtime.profiling import Measured, Profile
from lladav.runtime.profiling.compare import compare
from lladav.runtime.profiling.distribution import Distribution

LATER = 1e5


def scaled(values: Distribution, by: float) -> Distribution:
    return values.model_copy(
        update={name: getattr(values, name) * by for name in ("mean", "p50", "p90", "p95", "max")} | {"std": 0.001}
    )


def slower(profile: Profile, *, refresh: float = 1.0, apart: float = LATER) -> Profile:
    """The same profile with hardly any noise, and with refreshes that take that many times as long."""
    steps = [
        step.model_copy(update={"graph_ms": scaled(step.graph_ms, refresh if step.kind == "refresh" else 1.0)})
        for step in profile.steps
    ]
    gained = sum(step.graph_ms.mean * (refresh - 1) for step in profile.steps if step.kind == "refresh")
    answer = scaled(profile.answer_ms, 1 + gained / profile.answer_ms.mean)
    runs = [run.model_copy(update={"began": run.began + apart, "ms": run.ms + gained}) for run in profile.runs]
    return profile.model_copy(update={"steps": tuple(steps), "answer_ms": answer, "runs": tuple(runs)})


def test_a_profile_does_not_differ_from_itself(measured: Measured) -> None:
    found = compare(measured.profile, measured.profile)
    assert found.whole.ratio == pytest.approx(1)
    assert found.whole.paired
    assert found.largest() is None
    assert all(line.ratio == 1 for line in found.lines)


def test_the_difference_is_found_where_it_was_put(measured: Measured) -> None:
    found = compare(slower(measured.profile), slower(measured.profile, refresh=3.0, apart=2 * LATER))
    largest = found.largest()
    assert largest is not None
    line, share = largest
    assert (line.name, line.ratio, share) == ("refresh", pytest.approx(3.0), pytest.approx(1.0))
    assert not found.whole.paired


def test_a_faster_profile_is_explained_as_well(measured: Measured) -> None:
    found = compare(slower(measured.profile, refresh=3.0), slower(measured.profile, apart=2 * LATER))
    assert found.whole.ratio < 1
    largest = found.largest()
    assert largest is not None
    assert largest[0].name == "refresh"


def test_answers_side_by_side_are_paired(measured: Measured) -> None:
    doubled = [run.model_copy(update={"ms": 2 * run.ms}) for run in measured.profile.runs]
    found = compare(measured.profile, measured.profile.model_copy(update={"runs": tuple(doubled)}))
    assert found.whole.paired
    assert found.whole.ratio == pytest.approx(2)
    assert found.whole.noise == pytest.approx(0, abs=1e-9)


def test_other_workloads_are_refused_and_named(measured: Measured) -> None:
    other = measured.profile.workload.model_copy(update={"gen_length": 64, "load": ("stress",)})
    with pytest.raises(ProfileError, match="gen_length 12 against 64; load"):
        compare(measured.profile, measured.profile.model_copy(update={"workload": other}))


def test_one_answer_has_unknown_noise(measured: Measured) -> None:
    one = measured.profile.model_copy(update={"answer_ms": Distribution.of([100.0]), "runs": measured.profile.runs[:1]})
    double = one.model_copy(update={"answer_ms": Distribution.of([200.0])})
    assert not compare(one, double).whole.differs
