"""The robot's process loads nothing that is for workstations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Even an attempt fails, so that nothing is imported "if it is there".
PREAMBLE = """
import json, sys

class Refuse:
    attempts = []
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "transformers", "jinja2", "ml_dtypes"}:
            self.attempts.append(name)
            raise ImportError(f"{name} is not for robots")

sys.meta_path.insert(0, Refuse())
"""
ANSWER = """
from lladav.runtime import GenerationConfig, Pipeline
answer = Pipeline.load(sys.argv[1], threads=1).generate(
    "What is this?", images=[sys.argv[2]], config=GenerationConfig(gen_length=2)
)
assert len(answer.steps) >= 1
"""
VERB = """
from lladav.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
REPORT = """
print(json.dumps([Refuse.attempts, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def modules(code: str, *arguments: str) -> set[str]:
    """Top-level modules after running `code`, which must not have asked for the refused ones."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code + REPORT, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    attempts, loaded = json.loads(done.stdout.splitlines()[-1])
    assert attempts == []
    return set(loaded)


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "gradient.png"
    Image.linear_gradient("L").save(path)
    return str(path)


def test_answering_with_the_api(tiny_bundle: Path, picture: str) -> None:
    assert "onnxruntime" in modules(ANSWER, str(tiny_bundle), picture)


@pytest.mark.parametrize("output", [(), ("--json",), ("--watch",)])
def test_answering_with_the_command(tiny_bundle: Path, picture: str, output: tuple[str, ...]) -> None:
    question = ("--image", picture, "--prompt", "What is this?", "--gen-length", "2")
    assert "onnxruntime" in modules(VERB, "run", str(tiny_bundle), *question, *output)


def test_inspecting_needs_no_runtime(tiny_bundle: Path) -> None:
    assert not modules(VERB, "inspect", str(tiny_bundle), "--checksums") & {"numpy", "onnxruntime", "PIL", "tokenizers"}


def test_help_needs_nothing_heavy() -> None:
    everything = VERB.replace("main()", "sys.argv[1:] = [verb, '--help']; main()")
    verbs = ("export", "run", "calibrate", "build", "plan", "verify", "inspect", "doctor")
    code = f"for verb in {verbs}:\n{textwrap.indent(everything, '    ')}"
    assert not modules(code) & {"numpy", "onnxruntime", "PIL", "tokenizers", "tensorrt", "tensorrt_rtx"}


def test_planning_needs_no_library_of_engines(tiny_bundle: Path) -> None:
    loaded = modules(VERB, "plan", str(tiny_bundle), "--target", "orin-agx-64")
    assert not loaded & {"numpy", "onnxruntime", "tensorrt", "tensorrt_rtx"}
