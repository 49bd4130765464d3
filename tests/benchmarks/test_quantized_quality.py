"""The benchmarks of quantised bundles: what their tables say of what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks.pretrained_layers import WAYS, Layer, planted, rounded
from benchmarks.quantized_quality import FORMS, Measured, Table, quantised_form
from lladav.export.agreement import StepAgreement

STEPS = StepAgreement(None, 10, 0.01, 0.1, 8, 0.75, 0.99)


def measured(texts: Sequence[str]) -> Measured:
    return Measured(texts=tuple(texts), asked=1, steps=STEPS, worst=(("a", 0.25),), kept=2)


def test_accuracy_is_against_the_first_form() -> None:
    answers = [str(number) for number in range(1000)]
    worse = ["wrong", "wrong", *answers[2:]]
    found = {
        FORMS[0]: measured(answers),
        quantised_form("w8"): measured(worse),
        quantised_form("w4"): measured(worse),
    }
    table = Table(found, [*answers[:-1], "unknown"])
    assert "0.20 points against fp16; at most 0.3 are allowed" in next(table.gates())
    assert [line.rpartition(": ")[2] for line in table.gates()] == ["kept.", "kept."]
    _, _, first, second, _ = table.rows()
    assert first == "| fp16 | none | 2 | 0.999 | +0.00 | 0 / 0 | 100.0% | 75.0% | 99.0% | 0.01 | 0.1 | 0.25 |"
    assert second.startswith("| w8 | none | 2 | 0.997 | -0.20 | 2 / 0 | 99.8% |")


def test_a_gate_can_break() -> None:
    answers = ["right"] * 100
    found = {FORMS[0]: measured(answers), quantised_form("w8"): measured(["wrong", *answers[1:]])}
    assert next(Table(found, answers).gates()).endswith("**broken**.")


def test_planted_outliers_keep_outputs_and_spoil_integers() -> None:
    draw = np.random.default_rng(0)
    weights, seen, unseen = (draw.normal(0, 1, (count, 128)).astype(np.float32) for count in (64, 300, 200))
    plain = Layer(weights, seen, unseen)
    spoiled = planted(plain)
    np.testing.assert_allclose(spoiled.unseen @ spoiled.weights.T, unseen @ weights.T, rtol=1e-3, atol=1e-3)
    before, after = (rounded(layer, WAYS["w8a8 plain"]) for layer in (plain, spoiled))
    assert not before.kept
    assert after.kept
    assert after.error > 5 * before.error
    searched = rounded(spoiled, WAYS["w8a8 searched"])
    assert not searched.kept
    assert searched.error < after.error / 5


def test_gptq_uses_what_inputs_have_in_common() -> None:
    draw = np.random.default_rng(0)
    mixed = draw.normal(0, 1, (8, 256))
    weights = draw.normal(0, 1, (64, 256)).astype(np.float32)
    seen, unseen = ((draw.normal(0, 1, (600, 8)) @ mixed).astype(np.float32) for _ in range(2))
    layer = Layer(weights, seen, unseen)
    assert rounded(layer, WAYS["w4 GPTQ"]).error < rounded(layer, WAYS["w4 searched"]).error / 2
