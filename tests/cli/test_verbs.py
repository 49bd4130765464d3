"""Export, verify, inspect, and how every verb ends."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import write_tiny_checkpoint
from typer.testing import CliRunner

import lladav
import lladav.export
from lladav.cli.app import app
from lladav.cli.faults import guarded
from lladav.errors import BackendError, BundleError, OptionError
from lladav.inspect import count_parameters, inspect
from lladav.manifest import Manifest

ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"}


def call(*arguments: str, expect: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == expect, result.stderr
    return result.stdout, result.stderr


def test_version() -> None:
    assert call("--version")[0] == f"lladav {lladav.__version__}\n"


def test_help_names_the_verbs() -> None:
    out, _ = call("--help")
    assert all(verb in out for verb in ("export", "run", "calibrate", "build", "plan", "verify", "inspect", "doctor"))


def test_unknown_verb_is_a_usage_error() -> None:
    assert "quantify" in call("quantify", expect=2)[1]


def test_export_says_what_it_made_and_what_is_next(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    buckets = ("--canvas-buckets", "16,32", "--prompt-buckets", "128,256", "--tile-buckets", "4")
    out, _ = call(
        *("export", str(tiny_checkpoint), str(bundle), "--dtype", "fp16", "--vocab-rows", "all", "--no-verify"),
        *buckets,
    )
    assert "in fp16, exported in" in out
    assert f"lladav run {bundle} --image FILE" in out.replace("\n", "")
    manifest = Manifest.read(bundle)
    assert manifest.precision == "fp16"
    assert manifest.geometry.language.vocab_rows == 320
    assert (manifest.buckets.canvas, manifest.buckets.prompt, manifest.buckets.tiles) == ((16, 32), (128, 256), (1, 4))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--dtype", "int3"), "--dtype"),
        (("--vocab-rows", "some"), "--vocab-rows"),
        (("--canvas-buckets", "16,big"), "no list of whole numbers"),
        (("--prompt-buckets", "0,8"), "--prompt-buckets"),
        (("--tile-buckets", "99999999999999999999"), "--tile-buckets: Input should be less than or equal to 65536"),
    ],
)
def test_export_options_that_mean_nothing(tmp_path: Path, option: tuple[str, ...], message: str) -> None:
    _, err = call("export", "checkpoint", str(tmp_path / "bundle"), *option, expect=2)
    assert message in err
    assert not (tmp_path / "bundle").exists()


def test_export_of_nothing(tmp_path: Path) -> None:
    _, err = call("export", str(tmp_path / "absent"), str(tmp_path / "bundle"), "--no-verify", expect=1)
    assert "absent" in err
    assert "Traceback" not in err
    assert not any(tmp_path.iterdir())


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a package look as if it was not installed."""

    def remove(name: str) -> None:
        find = lladav.export.find_spec
        monkeypatch.setattr(lladav.export, "find_spec", lambda module: None if module == name else find(module))

    return remove


@pytest.mark.parametrize(("package", "extra"), [("onnx", "export"), ("ml_dtypes", "export"), ("torch", "verify")])
def test_missing_extra_is_named_before_anything_is_done(
    tmp_path: Path, without: Callable[[str], None], package: str, extra: str
) -> None:
    without(package)
    _, err = call("export", str(tmp_path / "absent"), str(tmp_path / "bundle"), expect=1)
    assert f"{package} cannot be imported" in err
    assert f"pip install 'lladav[{extra}]'" in err
    _, err = call("verify", str(tmp_path / "bundle"), str(tmp_path / "absent"), expect=1)
    assert f"pip install 'lladav[{extra}]'" in err


def test_export_without_torch_works_unverified(
    tiny_checkpoint: Path, tmp_path: Path, without: Callable[[str], None]
) -> None:
    without("torch")
    call("export", str(tiny_checkpoint), str(tmp_path / "bundle"), "--no-verify")
    assert inspect(tmp_path / "bundle", checksums=True).checksums


def test_interrupted_export_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lladav.manifest.Manifest.write", interrupt)
    _, err = call("export", str(tiny_checkpoint), str(tmp_path / "bundle"), "--no-verify", expect=130)
    assert err.endswith("interrupted\n")
    assert not any(tmp_path.iterdir())


def test_verify_prints_a_table_with_tolerances(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    out, _ = call("verify", str(tiny_bundle), str(tiny_checkpoint))
    assert "tolerance" in out
    assert "denoiser" in out
    assert "too far" not in out


def test_verify_of_another_model_fails_after_its_table(tiny_bundle: Path, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    out, err = call("verify", str(tiny_bundle), str(other), expect=1)
    assert "too far" in out
    assert "Traceback" not in err
    assert "\n  -> " in err


def test_inspect_prints_tables(tiny_bundle: Path) -> None:
    out, _ = call("inspect", str(tiny_bundle))
    for part in ("language model", "past_key_values.{0..1}.key", "prompt buckets", "denoiser.weights", "complete:"):
        assert part in out
    assert "whole:" in call("inspect", str(tiny_bundle), "--checksums")[0]


def test_inspect_plans_gpu_memory(tiny_bundle: Path) -> None:
    out = call("inspect", str(tiny_bundle), "--prompt", "512", "--canvas", "64")[0]
    assert "prompt 512, canvas 64" in out
    assert re.search(r"past_key_values\.\{0\.\.1\}\.key +float32 +1 x 4 x 512 x 8 +131 kB", out)
    assert "511 is no canvas bucket" in call("inspect", str(tiny_bundle), "--canvas", "511", expect=2)[1]
    plan = json.loads(call("inspect", str(tiny_bundle), "--json")[0])["gpu_memory"]
    last = plan["regions"][-1]
    assert plan["total"] == last["offset"] + last["bytes"]


def test_inspect_shows_the_scales_of_an_int8_prompt(tiny_bundle_int8_kv: Path) -> None:
    out = call("inspect", str(tiny_bundle_int8_kv), "--prompt", "512", "--canvas", "64")[0]
    assert "fp32, prompt KV in int8" in out
    # 2 layers of 4 heads of 512 positions: 8 codes, and one scale.
    assert re.search(r"past_key_values\.\{0\.\.1\}\.key +int8 +1 x 4 x 512 x 8 +32\.8 kB", out)
    assert re.search(r"past_key_values\.\{0\.\.1\}\.key_scale +float32 +1 x 4 x 512 x 1 +16\.4 kB", out)
    found = json.loads(call("inspect", str(tiny_bundle_int8_kv), "--json")[0])
    assert found["memory_bytes"]["prompt_kv"] == 2 * 2 * 4 * (8 + 4)


def test_prompt_is_kept_in_int8_or_in_floats(tiny_checkpoint: Path, tmp_path: Path) -> None:
    _, err = call("export", str(tiny_checkpoint), str(tmp_path / "bundle"), "--prompt-kv", "int4", expect=2)
    assert "--prompt-kv: Input should be 'int8'" in err
    assert not any(tmp_path.iterdir())


def test_inspect_prints_json(tiny_bundle: Path) -> None:
    found = json.loads(call("inspect", str(tiny_bundle), "--checksums", "--json")[0])
    assert found["checksums"] == "match"
    assert found["memory_bytes"]["prompt_kv"] == 2 * 2 * 32 * 4
    assert found["memory_bytes"]["logits"]["16"] == 16 * found["manifest"]["geometry"]["language"]["vocab_rows"] * 4
    assert found["total_bytes"] == sum(file.stat().st_size for file in tiny_bundle.iterdir())


def test_inspect_counts_the_parameters_in_use(tiny_bundle: Path) -> None:
    from lladav.export.coverage import expected_tensors

    geometry = Manifest.read(tiny_bundle).geometry
    sizes = [math.prod(shape) for shape in expected_tensors(geometry).values()]
    assert sum(count_parameters(geometry).values()) == sum(sizes)


def test_inspect_of_a_damaged_bundle(bundle_copy: Path) -> None:
    weights = bundle_copy / "denoiser.weights"
    contents = bytearray(weights.read_bytes())
    contents[5000] ^= 4
    weights.write_bytes(contents)
    call("inspect", str(bundle_copy))
    _, err = call("inspect", str(bundle_copy), "--checksums", expect=1)
    assert "denoiser.weights" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (BundleError("it broke", cure="mend it"), 1, "error: it broke\n  -> mend it\n"),
        (BackendError("it broke", cure="mend it"), 1, "error: it broke\n  -> mend it\n"),
        (OptionError("it broke", cure="mend it"), 2, "error: it broke\n  -> mend it\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "bundle/denoiser.weights"),
            1,
            "error: bundle/denoiser.weights: Permission denied\n"
            "  -> change its permissions, or be a user who has them\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_are_said_without_traceback(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    import typer

    def verb() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        guarded(verb)()
    assert caught.value.exit_code == code
    assert capsys.readouterr() == ("", said)


def test_a_current_folder_that_is_gone_is_no_fault_of_ours(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(typer.Exit) as caught:
        guarded(lambda: print(Path("bundle").absolute()))()
    assert caught.value.exit_code == 1
    assert (
        capsys.readouterr().err == "error: the current folder does not exist any more\n  -> change to one that does\n"
    )


def test_a_terminal_that_cannot_show_a_character_loses_nothing_else() -> None:
    code = "from lladav.cli import main; import lladav.cli.app as a; "
    code += "a.app = lambda **_: print('12 \\xb1 3'); main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | ASCII
    )
    assert (done.stdout, done.stderr) == ("12 \\xb1 3\n", "")


def test_our_own_faults_ask_for_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    def verb() -> None:
        raise ZeroDivisionError("of all things")

    with pytest.raises(typer.Exit) as caught:
        guarded(verb)()
    assert caught.value.exit_code == 70
    said = capsys.readouterr().err
    assert re.search(r"ZeroDivisionError: of all things\nerror: this is a fault of lladav", said)
    assert "lladav doctor --json" in said


def test_reader_that_leaves_early_is_no_error(tiny_bundle: Path) -> None:
    code = "from lladav.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "run", str(tiny_bundle), "--prompt", "hm", "--gen-length", "2", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert said == ""
    assert process.returncode == 141
