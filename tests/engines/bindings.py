"""Runs the code that builds and runs engines on the real classes of a library's Python bindings.

The bindings install without the library, and then have every class, method, property and signature, but
no object. Objects are played here: each is of one real class, has that class's members and no others,
takes arguments by its signatures, and gives what they say. So whatever the code calls that a
version lacks fails as it would there.

Run as `python bindings.py LIBRARY MODULE [OLD=NEW ...]`, where OLD in the code is replaced by NEW. It fails
as the code would, or prints what the code names of the classes' members without using it, and which of the
methods that it overrides do not exist.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from unbuilt import engine_record

import lladav.engines.compile
import lladav.engines.execution
import lladav.engines.integers
import lladav.engines.layer_times
import lladav.engines.layers
import lladav.engines.library
from lladav.engines.compile import Order, compile_plan
from lladav.engines.execution import load_plan
from lladav.engines.library import builds_ahead, known_capabilities
from lladav.engines.plan_file import HashedStream
from lladav.errors import BackendError, EngineError
from lladav.manifest import GraphSpec, TensorSpec
from lladav.records import Profile, Range

CODE = (
    *(lladav.engines.compile, lladav.engines.execution, lladav.engines.library),
    *(lladav.engines.layers, lladav.engines.integers, lladav.engines.layer_times),
)
SHAPE, STREAM = (1, 4), 77
SPEC = GraphSpec(
    file="graph.onnx",
    weights="graph.weights",
    inputs=(TensorSpec(name="in", dtype="float32", shape=(1, "window")),),
    outputs=(TensorSpec(name="out", dtype="float32", shape=(1, "window")),),
)
PROFILES = (Profile(name="step", sizes={"window": Range(1, 4, 8)}),)


class Played:
    """An object of one of the bindings' classes, without the library behind it."""

    def __init__(self, bindings: Bindings, kind: type) -> None:
        object.__setattr__(self, "_bindings", bindings)
        object.__setattr__(self, "_kind", kind)

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._kind, name)
        self._bindings.used.add(name)
        if isinstance(member, property):
            return self._bindings.answers.get(name, 1)

        def method(*arguments: Any) -> Any:
            returned = self._bindings.returned(member, (self, *arguments))
            return self._bindings.answers.get(name, returned)

        return method

    def __setattr__(self, name: str, value: object) -> None:
        member = getattr(self._kind, name)
        if not isinstance(member, property) or member.fset is None:
            raise AttributeError(f"{self._kind.__name__}.{name} cannot be set")
        self._bindings.used.add(name)
        del value


class Bindings:
    """The bindings' module, with objects where the library would have to be there.

    Args:
        module: the real one.
        library: the name that it has where the library is installed.

    Attributes:
        answers: by the name of a method or property, what it gives instead of what its type says.
        used: names of the members that were used.
    """

    _MADE = ("Builder", "OnnxParser", "Runtime")

    def __init__(self, module: Any, library: str) -> None:
        self._module = module
        self.__name__ = library
        self.answers: dict[str, Any] = {}
        self.used: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        self.used.add(name)
        if name not in self._MADE:
            return found

        def make(*arguments: Any) -> Played:
            made = Played(self, found)
            self.returned(found.__init__, (made, *arguments))
            return made

        return make

    def returned(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """What a method gives for arguments, by its signatures."""
        signatures = re.findall(rf"^(?:\d+\. )?{function.__name__}\((.*)\) -> (.*)$", function.__doc__, re.MULTILINE)
        for inside, result in signatures:
            parameters = list(_parameters(inside))
            least = sum(not p.optional for p in parameters)
            if least <= len(arguments) <= len(parameters) and all(map(self._accepts, parameters, arguments)):
                return self._value(result)
        given = ", ".join(type(getattr(a, "_kind", a)).__name__ for a in arguments)
        raise TypeError(f"{function.__name__} takes {signatures}, not {len(arguments)} arguments of types {given}")

    def _accepts(self, parameter: _Parameter, value: object) -> bool:
        kind = self._class(parameter.kind)
        if kind is None or kind.__name__ == "Dims":
            return not isinstance(value, Played)
        played = value._kind if isinstance(value, Played) else type(value)
        return issubclass(played, kind)

    def _value(self, kind: str) -> Any:
        found = self._class(kind)
        if found is None:
            return {"bool": True, "int": 1, "str": "text", "None": None, "tuple": ()}.get(kind, [])
        members = getattr(found, "__members__", None)
        return next(iter(members.values())) if members else Played(self, found)

    def _class(self, kind: str) -> type | None:
        """The bindings' class of that name; some are named as in C++, `nvonnxparser::IParserError`."""
        name = re.split(r"[.:]", kind)[-1]
        found = getattr(self._module, name, None) or getattr(self._module, name.removeprefix("I"), None)
        return found if isinstance(found, type) else None


class _Parameter(NamedTuple):
    kind: str
    optional: bool


def _parameters(inside: str) -> Iterator[_Parameter]:
    """From the inside of a signature's brackets."""
    for part in re.split(r", (?=\w+: )", inside):
        kind, _, default = part.partition(": ")[2].partition(" = ")
        yield _Parameter(kind, bool(default))


@contextmanager
def expecting(error: type[Exception] | None) -> Iterator[None]:
    try:
        yield
    except (EngineError, BackendError) as found:
        if error is None or type(found) is not error:
            raise
    else:
        assert error is None, f"{error.__name__} was not raised"


def build(trt: Any, folder: Path) -> None:
    order = Order("graph", folder / "graph.onnx", SPEC, PROFILES, "8.9")
    compile_plan(trt, order, HashedStream(BytesIO()), folder / "timing.cache", lambda _: None)


def run(trt: Any, folder: Path) -> None:
    plan = folder / "engines" / "rtx-40" / "graph.plan"
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.write_bytes(b"plan")
    record = engine_record("graph", library=trt.__name__, library_version=trt.__version__, profiles=PROFILES)
    bundle: Any = SimpleNamespace(path=folder, manifest=SimpleNamespace(graphs={"graph": SPEC}))
    engine = load_plan(record, bundle, STREAM)
    placed = SimpleNamespace(address=256, shape=SHAPE)
    bound = engine.bind({"in": placed, "out": placed}, profile="step", scratch=512)
    bound.enqueue()
    assert bound.time_layers(2) == ((), ())
    engine.layers()
    engine.keep_compiled()
    # Once more, with what was compiled.
    load_plan(record, bundle, STREAM)


def scenarios(trt: Bindings) -> Iterator[tuple[Callable[[Any, Path], None], dict[str, Any], type[Exception] | None]]:
    """What is done, what the library answers then, and what shall come of it."""
    parsed = {"num_layers": 1, "num_inputs": 1, "metadata": "[ONNX Layer: node]", "shape": SHAPE}
    blob = {"serialize": b"blob", "build_serialized_network": b"plan", **parsed, "type": trt.LayerType.DEQUANTIZE}
    usual = {**blob, "get_tensor_shape": SHAPE, "infer_shapes": [], "get_engine_information": '{"Layers": []}'}
    if hasattr(trt, "EngineValidity"):
        usual["get_engine_validity"] = (trt.EngineValidity.VALID, 0)
        yield run, {**usual, "get_engine_validity": (trt.EngineValidity.INVALID, 0)}, EngineError
    yield build, blob, None
    for kind in (trt.LayerType.CONSTANT, trt.LayerType.SHUFFLE, trt.LayerType.MATRIX_MULTIPLY):
        yield build, {**blob, "type": kind}, None
    yield build, {**blob, "set_timing_cache": False}, None
    yield build, {**blob, "parse_from_file": False}, EngineError
    yield build, {**blob, "add_optimization_profile": -1}, EngineError
    failed = {"build_serialized_network": None, "build_serialized_network_to_stream": False}
    yield build, {**blob, **failed}, EngineError
    yield run, usual, None
    yield run, {**usual, "deserialize_cuda_engine": None}, EngineError
    yield run, {**usual, "set_input_shape": False}, BackendError
    yield run, {**usual, "execute_async_v3": False}, BackendError


def invented(trees: list[ast.Module], real: Any) -> Iterator[str]:
    """Methods that the code defines in classes of its own on the library's, and that these do not have."""
    classes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    for own in classes:
        for base in own.bases:
            if isinstance(base, ast.Attribute) and hasattr(real, base.attr):
                methods = (item.name for item in own.body if isinstance(item, ast.FunctionDef))
                yield from (name for name in methods if not hasattr(getattr(real, base.attr), name))


def main(library: str, module: str, *replacements: str) -> None:
    trees = []
    for code in CODE:
        assert code.__file__ is not None
        source = Path(code.__file__).read_text("utf-8")
        for replacement in replacements:
            source = source.replace(*replacement.split("="))
        exec(compile(source, code.__file__, "exec"), code.__dict__)
        trees.append(ast.parse(source))
    real = importlib.import_module(module)
    trt = Bindings(real, library)
    lladav.engines.execution.load_library = lambda _: trt
    for act, answers, error in scenarios(trt):
        trt.answers = answers
        with tempfile.TemporaryDirectory() as folder, expecting(error):
            act(trt, Path(folder))
    if builds_ahead(trt):
        assert "8.9" in known_capabilities(trt)
    named = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    members = {name for kind in vars(real).values() if isinstance(kind, type) for name in vars(kind)}
    print(json.dumps({"unused": sorted(named & members - trt.used), "invented": list(invented(trees, real))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
