"""From ONNX Runtime's events to a tree."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from lladav.runtime.profiling import Measured
from lladav.runtime.profiling.layers import Node, engine_nodes, fold, kind_of, node_times, trtexec_profile


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


class Layer(NamedTuple):
    name: str
    nodes: frozenset[str]
    ms: float


def test_layers_of_engines_have_the_kind_and_the_place_of_their_nodes() -> None:
    norm = frozenset({"layers.3/self_attn/o_proj", "layers.3/mlp/rms_norm"})
    run = [
        Layer("__myl_Add_myl0_4", norm, 0.5),
        Layer("layers.3/mlp/up_proj_U4+layers.3/mlp/gate_proj_U5", frozenset({"layers.3/mlp/up_proj"}), 2.0),
        Layer("_gemm_mha_v2_myl0_7", frozenset({"layers.3/self_attn/Softmax", "layers.3/self_attn/mix"}), 1.0),
        Layer("Reformatting CopyNode for Input 0", frozenset(), 0.25),
        Layer("Reformatting CopyNode for Input 0", frozenset(), 0.25),
    ]
    nodes = engine_nodes("step", [run, [layer._replace(ms=3 * layer.ms) for layer in run]])
    assert [(node.name, node.ms, node.kind) for node in nodes] == [
        ("step/layers.3/__myl_Add_myl0_4", (0.5, 1.5), "norm"),
        ("step/layers.3/mlp/up_proj_U4+layers.3/mlp/gate_proj_U5", (2.0, 6.0), "MLP"),
        ("step/layers.3/self_attn/_gemm_mha_v2_myl0_7", (1.0, 3.0), "attention"),
        ("step/Reformatting CopyNode for Input 0", (0.5, 1.5), "other"),
    ]
    assert {part.name: part.ms for part in fold(nodes).tree}["step/attention"] == 2.0
    (head,) = engine_nodes("step", [[Layer("gemm", frozenset({"head/lm_head", "layers.3/mlp/Add"}), 1.0)]])
    assert head.name == "step/gemm"


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
