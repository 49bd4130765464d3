from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lladav.errors import BundleError, PromptError
from lladav.geometry import Geometry, LanguageGeometry, VisionGeometry
from lladav.manifest import Preprocessing, TableSpec
from lladav.runtime import merge
from lladav.runtime.embedding import EmbeddingTable, merge_prompt
from lladav.runtime.images import open_image, pixel_values, preprocess
from lladav.runtime.prompt import IMAGE_TOKEN

PRE = Preprocessing(
    crop_size=384, grid_pinpoints=tuple((384 * i, 384 * j) for i in range(1, 7) for j in range(1, 7)), max_tiles=4
)
GOLDEN = Geometry(
    language=LanguageGeometry(
        hidden_size=64,
        intermediate_size=160,
        layers=3,
        heads=4,
        kv_heads=4,
        head_size=16,
        vocab_rows=126464,
        rope_theta=5e5,
        rms_norm_eps=1e-5,
        max_positions=16384,
    ),
    vision=VisionGeometry(
        hidden_size=32,
        intermediate_size=80,
        layers=3,
        heads=2,
        image_size=384,
        patch_size=14,
        layer_norm_eps=1e-6,
    ),
)


def bfloat16_bits(values):
    return (values.view(np.uint32) >> 16).astype(np.uint16)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A table of 50 rows and 6 columns in every type, and the values that each stands for."""
    folder = tmp_path_factory.mktemp("tables")
    values = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    stored = {"float32": values, "float16": values.astype(np.float16), "bfloat16": bfloat16_bits(values)}
    meant = {
        "float32": values,
        "float16": stored["float16"].astype(np.float32),
        "bfloat16": (stored["bfloat16"].astype(np.uint32) << 16).view(np.float32),
    }
    made = {}
    for dtype, array in stored.items():
        array.tofile(folder / dtype)
        made[dtype] = EmbeddingTable(folder / dtype, TableSpec(file=dtype, dtype=dtype, shape=(50, 6))), meant[dtype]
    return made


# ------------------------------------------------------------------------------------------ table


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_of_every_type_come_out_as_float32(tables, dtype):
    table, values = tables[dtype]
    ids = [3, 49, 0, 3]
    np.testing.assert_array_equal(table.gather(ids), values[ids])
    out = np.empty((6, 6), np.float32)
    assert np.shares_memory(table.gather(ids, out[1:5]), out)
    np.testing.assert_array_equal(out[1:5], values[ids])
    assert table.gather([]).shape == (0, 6)


@pytest.mark.parametrize("bad", [50, -1, IMAGE_TOKEN, 2**40])
def test_an_id_without_a_row_is_named(tables, bad):
    with pytest.raises(PromptError, match=f"token id {bad} has no embedding; the model has ids 0 to 49"):
        tables["float32"][0].gather([1, bad, 2])


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        ("float32", (51, 6), "1,200 bytes instead of 1,224"),
        ("int64", (25, 6), "no embedding"),
        ("float32", (300,), "no embedding"),
    ],
)
def test_a_file_of_another_size_or_type_is_refused(tmp_path, dtype, shape, message):
    file = tmp_path / "table.bin"
    np.zeros((50, 6), np.float32).tofile(file)
    with pytest.raises(BundleError, match=message):
        EmbeddingTable(file, TableSpec(file="table.bin", dtype=dtype, shape=shape))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(BundleError, match="cannot be mapped"):
        EmbeddingTable(tmp_path / "gone.bin", TableSpec(file="gone.bin", dtype="float32", shape=(1, 1)))


# ------------------------------------------------------------------------------------------ merge


@given(
    st.lists(st.integers(0, 49) | st.just(IMAGE_TOKEN), max_size=20),
    st.lists(st.integers(0, 9), max_size=4),
    st.integers(1, 60),
)
@settings(max_examples=200, deadline=None)
def test_prompt_equals_the_slow_version(tables, ids, lengths, max_prompt):
    table, values = tables["float32"]
    images = [np.full((length, 6), 100 + i, np.float32) for i, length in enumerate(lengths)]
    parts, kinds, seen = [], [], 0
    for token in ids:
        if token != IMAGE_TOKEN:
            parts.append(values[[token]])
        elif seen < len(images):
            parts.append(images[seen])
        elif images and seen == len(images):
            parts.append(images[-1])
        else:
            with pytest.raises(PromptError, match=f"{ids.count(IMAGE_TOKEN)} pictures, but {len(images)}"):
                merge_prompt(ids, table, images, max_prompt)
            return
        seen += token == IMAGE_TOKEN
        kinds += [token] * len(parts[-1])
    got, got_kinds = merge_prompt(ids, table, images, max_prompt)
    cut = max_prompt if images else None
    np.testing.assert_array_equal(got, np.concatenate([np.empty((0, 6)), *parts])[:cut])
    assert (got.dtype, got_kinds.dtype) == (np.float32, np.int64)
    assert got_kinds.tolist() == kinds[:cut]


# ------------------------------------------------------------------ against the recorded reference


def read_safetensors(folder):
    for file in sorted(folder.glob("model-*.safetensors")):
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                yield name, np.frombuffer(data[start + begin : start + end], "<f4").reshape(entry["shape"])


class Golden:
    """The golden checkpoint, with the connector's output for any of the golden pictures."""

    def __init__(self, checkpoint, pictures, folder):
        torch = pytest.importorskip("torch")
        from lladav.export.reference import LladaV

        self.torch, self.pictures = torch, pictures
        tensors = dict(read_safetensors(checkpoint))
        self.newline = tensors["model.image_newline"]
        tensors["model.embed_tokens.weight"].tofile(folder / "embed.bin")
        spec = TableSpec(file="embed.bin", dtype="float32", shape=(126464, 64))
        self.table = EmbeddingTable(folder / "embed.bin", spec)
        self.model = LladaV(GOLDEN).eval()
        wanted = self.model.state_dict().keys()
        self.model.load_state_dict({n: torch.from_numpy(t.copy()) for n, t in tensors.items() if n in wanted})
        self.cache = {}

    def image(self, name, aspect):
        """Merged features of one picture, `[n, 64]`."""
        if (name, aspect) not in self.cache:
            crops = preprocess(open_image(self.pictures / f"{name}.{'tif' if name == 'cmyk' else 'png'}"), PRE, aspect)
            with self.torch.inference_mode():
                features = self.model.image_features(self.torch.from_numpy(pixel_values(crops.pixels))).numpy()
            plan = merge.merge_plan(crops.size, crops.grid, 27, PRE.max_tiles)
            self.cache[name, aspect] = merge.apply(plan, features, self.newline)
        return self.cache[name, aspect]


@pytest.fixture(scope="module")
def golden(golden_checkpoint, shared, tmp_path_factory):
    return Golden(golden_checkpoint("fp32"), shared / "parity" / "images", tmp_path_factory.mktemp("golden"))


CASES = [
    "one_photo43",
    "one_down",
    "one_tall",
    "one_wide",
    "one_ribbon",
    "one_tiny",
    "one_odd",
    "one_sliver_a",
    "two_slivers",
    "two_mixed",
    "three_truncated_8192",
    "more_images_than_placeholders",
    "no_image",
    "more_placeholders_than_images",
    "two_pad_4d",
    "one_pad_4d",
]


def test_every_golden_merge_is_tested(goldens):
    assert sorted(goldens.facts["merge"]["cases"]) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_merged_prompt_is_that_of_the_reference(name, goldens, golden):
    case = goldens.facts["merge"]["cases"][name]
    images = [golden.image(picture, case["aspect_override"] or "anyres") for picture in case["images"]]
    embeds, kinds = merge_prompt(case["ids"], golden.table, images, 8192)
    assert list(embeds.shape) == case["embeds"]["shape"] == [case["length"], 64]
    newlines = np.flatnonzero((embeds == golden.newline).all(axis=1))
    assert newlines.tolist() == case["newline_positions"]
    text = [i for i in case["ids"] if i != IMAGE_TOKEN]
    kept = [(p, i) for p, i in zip(case["text_positions"], text, strict=True) if p is not None]
    assert [(p, kinds[p]) for p in np.flatnonzero(kinds != IMAGE_TOKEN)] == kept
    key = case["embeds"]["npz"]
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), goldens.arrays[f"{key}/row_l2"], rtol=1e-5, atol=1e-4)
    sampled = embeds.reshape(-1)[goldens.arrays[f"{key}/idx"]]
    np.testing.assert_allclose(sampled, goldens.arrays[f"{key}/val"], rtol=0, atol=1e-4)
