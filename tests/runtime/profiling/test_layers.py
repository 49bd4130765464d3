"""From ONNX Runtime's events to a tree."""

from __future__ import annotations

from typing import Any

import pytest

from lladav.runtime.profiling import Measured
from lladav.runtime.profiling.layers import Node, fold, kind_of, node_times, trtexec_profile


def node(name: str, began: int, microseconds: int) -> dict[str, Any]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": began, "dur": microseconds}


def run(began: int, microseconds: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": began, "dur": microseconds}


def test_a_node_with_graphs_inside_keeps_what_they_leave() -> None:
    events = [
        node("if", 110, 100),
        node("inside", 120, 60),
        node("after", 215, 5),
        {"cat": "Node", "name": "after_fence_before", "ts": 214, "dur": 1},
        run(100, 200),
        node("if", 410, 50),
        run(400, 100),
    ]
    first, second = node_times(events)
    assert first == pytest.approx({"if": 0.04, "inside": 0.06, "after": 0.005})
    assert second == pytest.approx({"if": 0.05})


def test_casts_count_for_the_node_they_were_put_beside() -> None:
    events = [node("InsertedPrecisionFreeCast_layers.0/mlp/up_proj", 1, 10), node("layers.0/mlp/up_proj", 20, 30)]
    assert node_times([*events, run(0, 100)]) == [pytest.approx({"layers.0/mlp/up_proj": 0.04})]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("refresh/layers.3/self_attn/q_proj", "attention"),
        ("refresh/layers.3/self_attn/rms_norm/SimplifiedLayerNormFusion", "norm"),
        ("step/layers.0/mlp/down_proj/MatMulScaleFusion", "MLP"),
        ("step/rotary/Cos", "attention"),
        ("step/head/lm_head", "head"),
        ("vision_encoder/embeddings/patch_embedding_nchwc", "embeddings"),
        ("connector/fc1", "connector"),
        ("vision_encoder/FastGelu", "other"),
    ],
)
def test_names_tell_the_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_shares_are_of_the_own_graph() -> None:
    nodes = [
        Node("refresh/a/mlp/x", (3.0, 5.0)),
        Node("refresh/a/self_attn/x", (1.0, 1.0)),
        Node("step/head/x", (2.0,)),
    ]
    found = fold(nodes)
    assert [(part.name, part.ms, part.share) for part in found.tree] == [
        ("refresh", 5.0, 1.0),
        ("refresh/MLP", 4.0, 0.8),
        ("refresh/attention", 1.0, 0.2),
        ("step", 2.0, 1.0),
        ("step/head", 2.0, 1.0),
    ]
    assert [part.name for part in found.slowest] == ["refresh/a/mlp/x", "step/head/x", "refresh/a/self_attn/x"]


def test_trtexecs_format() -> None:
    count, first, second = trtexec_profile([Node("a", (1.0, 3.0, 2.0)), Node("b", (6.0, 6.0, 6.0))])
    assert count == {"count": 3}
    assert first == {"name": "a", "timeMs": 6.0, "averageMs": 2.0, "medianMs": 2.0, "percentage": 25.0}
    assert second["percentage"] == 75.0


def test_every_part_of_the_real_graphs_is_found(measured: Measured) -> None:
    layers = measured.profile.layers
    assert layers is not None
    names = {part.name for part in layers.tree}
    for graph in ("refresh", "step"):
        assert {f"{graph}/{kind}" for kind in ("attention", "MLP", "norm", "head")} <= names
    assert {"vision_encoder/embeddings", "vision_encoder/attention", "connector/connector"} <= names
    share = {part.name: part.share for part in layers.tree}
    assert share.get("refresh/other", 0) < 0.2
