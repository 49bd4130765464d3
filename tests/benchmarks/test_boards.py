"""The pages of predictions are those that the targets' data give now."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import boards
from benchmarks.pages import replace_parts
from lladav.errors import EngineError
from lladav.manifest import Manifest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return boards.llada_v(tmp_path_factory.mktemp("boards") / "bundle")


def test_bundle_says_that_it_is_llada_v(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    assert manifest.geometry.language.layers == 32
    assert manifest.tables["embed_tokens"].shape == (126_464, 4096)
    assert manifest.buckets.prompt == (900, 3650)


@pytest.mark.parametrize(("page", "name"), [("performance", "latencies"), ("jetson", "memory")])
def test_pages_are_up_to_date(bundle: Path, tmp_path: Path, page: str, name: str) -> None:
    kept = DOCS / f"{page}.md"
    written = Path(shutil.copy(kept, tmp_path))
    replace_parts(written, {name: getattr(boards, name)(bundle)})
    assert written.read_bytes() == kept.read_bytes(), "run `python -m benchmarks.boards docs`"


def test_what_does_not_fit_has_no_time(bundle: Path) -> None:
    rows = [line.split(" | ") for line in boards.latencies(bundle)]
    of_nano = [row for row in rows if "Nano" in row[0]]
    assert of_nano
    assert all({cell.strip(" |") for cell in row[3:]} == {"does not fit"} for row in of_nano)


def test_building_is_not_promised_beyond_the_memory(bundle: Path) -> None:
    (row,) = [line for line in boards.memory(bundle) if "AGX Orin 32 GB" in line and "| fp16 |" in line]
    whole, streamed = row.strip("| ").split(" | ")[-2:]
    assert whole.startswith("**")
    assert not streamed.startswith("**")
    (thor, *_) = [line for line in boards.memory(bundle) if "Thor" in line]
    assert thor.split(" | ")[-2].strip() == "", "JetPack 6 does not run on it"


def test_every_precision_of_a_table_is_one_of_its_target(bundle: Path) -> None:
    with pytest.raises(EngineError, match="no prediction for int4"):
        boards.predict(bundle, "a100", precision="int4")
    assert not any("A100" in line and "int4" in line for line in boards.latencies(bundle))
