"""A set of the hub (a folder of parquet files here) holds the same rows as a conversation file."""

import io
import sys

import numpy as np
import pytest
from conversation_files import MARK, item, said, standard
from PIL import Image

from fusionbench.api.errors import UserError
from fusionbench.study.conversations import HubSet
from fusionbench.study.mixture import open_conversations, parse_mixture


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="hub:owner/name needs the package datasets") as error:
        HubSet("owner/name")
    assert "layer-fusionbench[hub]" in error.value.hint


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    found = pytest.importorskip("datasets")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return found


def rows(folder):
    """The standard items with images in place of their names."""
    found = []
    for one in standard(folder):
        names = one.get("image", [])
        names = [names] if isinstance(names, str) else names
        images = [Image.open(folder / name).copy() for name in names]
        found.append({"id": one["id"], "images": images, "conversations": one["conversations"]})
    return found


def saved(datasets, values, folder, features=None):
    folder.mkdir()
    datasets.Dataset.from_list(values, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


def features(datasets, **image):
    text = datasets.Value("string")
    return datasets.Features(
        {"id": text, "conversations": datasets.List({"from": text, "value": text}), **image}
    )


def test_lists_of_images_are_read(datasets, tmp_path):
    kinds = features(datasets, images=datasets.List(datasets.Image()))
    values = rows(tmp_path)
    name = saved(datasets, values, tmp_path / "set", kinds)
    (part,) = parse_mixture([f"hub:{name}"])
    held = open_conversations(part)
    assert held.index.turns.tolist() == [2, 1, 1, 1]
    assert held.index.images.tolist() == [1, 0, 2, 1]
    pictures = held[2].pictures
    assert all(isinstance(one.content, bytes) for one in pictures)
    for found, wanted in zip(pictures, values[2]["images"], strict=True):
        assert (np.asarray(found.open()) == np.asarray(wanted)).all()
    assert held[0].turns[1].answer == "Grey." and "item 3: image 2" in pictures[1].name


def test_one_image_a_row_or_none_is_read(datasets, tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, format="PNG")
    kinds = features(datasets, image=datasets.Image())
    values = [item(None, "Q", "A") | {"image": None}]
    values += [{"id": "b", "image": {"bytes": file.getvalue()}, "conversations": said(MARK, "A")}]
    held = HubSet(saved(datasets, values, tmp_path / "set", kinds))
    assert held.index.images.tolist() == [0, 1]
    assert held[1].pictures[0].size() == len(file.getvalue())


def test_a_wrong_item_is_refused_with_its_number(datasets, tmp_path):
    values = [item(None, "Q", "A"), item(None, f"{MARK} Q", "A")]
    held = HubSet(saved(datasets, values, tmp_path / "set"))
    with pytest.raises(UserError, match="set, item 2: the questions have 1 <image> marks"):
        held.index  # noqa: B018


def test_a_set_without_conversations_or_with_names_of_images_is_refused(datasets, tmp_path):
    with pytest.raises(UserError, match="has no column conversations, it has text"):
        HubSet(saved(datasets, [{"text": "a"}], tmp_path / "one"))
    with pytest.raises(UserError, match="the column image holds .* not images") as error:
        HubSet(saved(datasets, [item("a.png", MARK, "A")], tmp_path / "two"))
    assert "JSON file" in error.value.hint


def test_a_set_that_is_not_there_is_refused(datasets, tmp_path):
    with pytest.raises(UserError, match="cannot read hub:"):
        HubSet(str(tmp_path / "nothing"))
