"""Damaged files of every stored format: no crash, no hang, and nothing else in a table unsaid.

`pytest -m slow` mutates each format 10,000 times (FUSIONBENCH_MUTATIONS: another number) and prints
what became of them; the fast run takes a few of each.
"""

import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from mutator import clear, mutate
from toy_records import ITEMS, outcomes, put, record, spec

from fusionbench.api.errors import UserError
from fusionbench.records import cost
from fusionbench.records.cost import Conditions, CostRecord
from fusionbench.records.files import write_atomic
from fusionbench.records.history import (
    Design,
    PlannedAblation,
    Request,
    Variant,
    note_design,
    read_designs,
)
from fusionbench.records.merge import merge
from fusionbench.records.outcomes import Said
from fusionbench.records.pictures import ExamplePictures, draw_sheet, picture_file, read_pictures
from fusionbench.records.probes import ProbeMap, probe_maps, write_probe
from fusionbench.records.store import Store

MANY = int(os.environ.get("FUSIONBENCH_MUTATIONS", "10000"))
FEW = 12
SECONDS = 20
"""A mutation that takes longer counts as one that hangs."""
NAMED, SAME = "named", "same tables"


@contextmanager
def time_limit():
    def stop(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def live(folder: Path) -> Path:
    """A folder with a file of every format that a run or a report reads."""
    with Store.create(folder) as store:
        for method in ("last", "mema"):
            put(store, spec(method), 0.5, draw=len(method), loss=(2.0, 1.5), lr=0.01)
        scores = np.linspace(0, 1, 40, dtype=np.float32)
        said = tuple(Said(item=name, text=f"yes {name}") for name in ITEMS.names)
        store.write(record(spec("concat"), scores), scores, ITEMS, said)
        store.write(record(spec("mema", seed=1000, stage="tune"), [0.5]))
        store.write_failure(record(spec("mema", seed=1), status="failed", reason="it broke"))
        study = {"name": "toy", "baseline": "last", "seeds": 2, "note": "n"}
        store.history.add(Request(study=study, labels=("last", "mema"), tasks=("digits",)))
    cost.write(folder, profile())
    design = Design(kind="one_factor_out", method="mema", variants=(Variant(label="mema"),))
    cells = {"mema": {"digits": (spec("mema").id,)}}
    planned = PlannedAblation(design=design, encoder="nano", budget="b", cells=cells)
    note_design(folder, planned)
    write_probe(
        folder,
        ProbeMap(
            encoder="nano", weights="w", image_size=64, task="digits", task_version=1, data="d",
            group="fine", metric="accuracy", chance=0.1, layers=(0.1, 0.5), val=(0.2, 0.4), n=4,
            n_train=8, n_val=4, provenance={},
        ),
    )  # fmt: skip
    write_pictures(folder)
    return folder


def write_pictures(folder: Path) -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    tiles, (width, height), columns, sheet = draw_sheet(images, np.array([0, 1, 1]))
    found = ExamplePictures(
        task="digits", data="d", items="i", texts=("which?",), questions=(0, 0, 0),
        answers=("0", "1"), right=(0, 1, 1), tiles=tiles, width=width, height=height,
        columns=columns, sheet=sheet,
    )  # fmt: skip
    write_atomic(picture_file(folder, "digits", "d", "i"), found.to_json().encode())


def profile() -> CostRecord:
    conditions = Conditions(
        method="mema", method_version=1, settings={"a": 1}, encoder="nano", weights="w",
        image_size=64, width=64, mode="inference", batch=1, dtype="float32", device="cpu",
    )  # fmt: skip
    return CostRecord(conditions=conditions, label="mema", layers=8, dim=96, tokens=17,
                      in_encoder=False, parameters={"fusion": 1}, tokens_out=16)  # fmt: skip


def tables(folder: Path) -> tuple[object, list[str]]:
    """Everything that a table is made of, and what is said of files that are not."""
    store = Store.open(folder)
    finished, tuning = store.finished(reread=True), store.tuning()
    problems, shown = [], []
    for one in store.records(finished | tuning):
        values: list[object] = [one]
        if one.outcomes:
            values.append(store.outcomes(one).tobytes())
        if one.items:
            values.append(store.items(one))
        if one.answers:
            values.append(store.answers(one))
        shown.append(values)
    failures = [(one.id, one.reason) for one in store.failures(finished)]
    profiles = list(cost.read(folder, problems))
    maps = list(probe_maps(folder, problems))
    pictures = list(read_pictures(folder, problems))
    # Keys of a study have no order.
    requests = [json.dumps(asdict(one), sort_keys=True) for one in store.history.requests()]
    asked = requests, read_designs(folder)
    said = [*map(str, store.problems), *map(str, problems)]
    return repr((shown, failures, profiles, maps, pictures, asked)), said


def of_folder(folder: Path) -> Callable[[], str]:
    """Judges the folder against what it is now."""
    before, said = tables(folder)
    assert not said

    def judge() -> str:
        now, said = tables(folder)
        if now == before:
            return SAME
        assert said, "another table, and nothing is said"
        return NAMED

    return judge


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[0]


LIVE = (
    "cells/*.json", "outcomes/*.bin", "items/*.json", "facts/*.json", "tuning/*.json",
    "failures/*.json", "answers/*.gz", "study.json", "ablations.json", "profiles/*.json",
    "probes/*.json", "pictures/*.json", ".checked",
)  # fmt: skip
COMPACT = (
    "cells.jsonl", "outcomes.npz", "items.json", "facts.json", "failures.jsonl", "profiles.jsonl",
    "pictures.jsonl", "study.json", "SHA256SUMS", "answers.npz",
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("mutations")
    made = live(home / "live")
    merge([made], home / "compact")
    return {"live": made, "compact": home / "compact"}


def attack(file: Path, judge: Callable[[], str], count: int, name: str) -> Counter[str]:
    """Mutate a file `count` times; the number of mutations by what became of them."""
    original, found = file.read_bytes(), Counter[str]()
    ledger = file.parent.parent / ".checked"
    noted = ledger.read_bytes() if ledger.exists() else b""
    for number in range(count):
        kind = mutate(file, original, random.Random(f"{name} {number}"))
        try:
            with time_limit():
                found[judge()] += 1
        except UserError:
            found[NAMED] += 1
        except BaseException as error:
            raise AssertionError(f"{name}, mutation {number} ({kind}): {error!r}") from error
        clear(file)
        file.write_bytes(original)
        if noted:
            ledger.write_bytes(noted)
    return found


def run(file, judge, name, number):
    found = attack(file, judge, number, name)
    counts = ", ".join(f"{count} {what}" for what, count in sorted(found.items()))
    sys.stdout.write(f"{name}: {number} mutations: {counts}; 0 silent, 0 crashes, 0 hangs\n")
    return found, counts


# The few are the first of the many: only those are counted.
FAULT = pytest.mark.fault(
    "stored data", "a mutated file of a stored format",
    "no crash, no hang, and no mutation that changes a table unnamed",
)  # fmt: skip
NUMBERS = [
    pytest.param(FEW, id="few"),
    pytest.param(MANY, id="many", marks=[pytest.mark.slow, FAULT]),
]


FILES = [*(("live", one) for one in LIVE), *(("compact", one) for one in COMPACT)]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("form", "pattern"), FILES)
def test_a_damaged_file_of_a_folder_changes_no_table_unsaid(
    form, pattern, number, folders, tmp_path, injected
):
    folder = shutil.copytree(folders[form], tmp_path / form)
    found, counts = run(first(folder, pattern), of_folder(folder), f"{form} {pattern}", number)
    assert set(found) <= {SAME, NAMED} and sum(found.values()) == number
    injected(number, counts)


def test_the_judge_sees_a_change_that_nobody_names(folders, tmp_path):
    folder = shutil.copytree(folders["live"], tmp_path / "live")
    judge = of_folder(folder)
    store = Store.open(folder)
    put(store, spec("last", seed=1), 0.7)
    with pytest.raises(AssertionError, match="nothing is said"):
        judge()


def test_a_record_that_was_signed_anew_is_named(folders, tmp_path):
    from fusionbench.records.schema import full_text

    folder = shutil.copytree(folders["live"], tmp_path / "live")
    judge = of_folder(folder)
    one = next(Store.open(folder).records())
    (folder / "cells" / f"{one.id}.json").write_text(full_text(replace(one, family="other")))
    assert judge() == NAMED
    assert "edited and signed" in tables(folder)[1][0]
    assert outcomes(0.5).any()


# The cache: features, bundles, kept images, notes, packs.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def features_judge(cache):
    import torch
    from toy_cells import BUDGET, BrightHalf, PixelToyEncoder

    from fusionbench.harness.bundle import cut
    from fusionbench.models.encoders import features
    from fusionbench.models.encoders.features import FeatureKey

    images = cut("bright_half", BrightHalf().load(), BUDGET)[1][:4]
    key = FeatureKey(weights="w", size=4, images="i", count=4, precision="fp32", dtype="float16")
    features.encode(PixelToyEncoder(), images, key, [(1,)], limit_gib=1)
    whole = features.read(key, (1,)).clone()

    def judge():
        if features.missing_taps(key, [(1,)]):
            return NAMED
        assert torch.equal(features.read(key, (1,)), whole)
        return SAME

    return key.path((1,)), judge


def bundle_judge(cache):
    from toy_cells import BUDGET, BrightHalf

    from fusionbench.harness.bundle import bundle_path, cached_bundle, keep

    keep("bright_half", "d" * 64, BrightHalf().load(), BUDGET)
    path = bundle_path("bright_half", "d" * 64, BUDGET)
    whole = repr(cached_bundle(path))

    def judge():
        found = cached_bundle(path)
        assert found is None or repr(found) == whole
        return NAMED if found is None else SAME

    return path, judge


def images_judge(cache):
    from fusionbench.harness.bundle import cached_bundle, kept_images

    path, _ = bundle_judge(cache)
    bundle = cached_bundle(path)
    whole = kept_images(bundle).copy()

    def judge():
        found = kept_images(bundle)
        assert found is None or np.array_equal(found, whole)
        return NAMED if found is None else SAME

    return first(cache / "images", "*.npy"), judge


def note_judge(cache):
    from fusionbench.records.files import file_hash

    file = cache.parent / "weights"
    file.write_bytes(b"some weights")
    whole = file_hash(file)

    def judge():
        assert file_hash(file) == whole
        return SAME

    return first(cache / "hashes", "*"), judge


def pack_judge(cache, name, monkeypatch):
    from fusionbench.registry.catalog import read_catalog
    from fusionbench.study.data import pack, packed_data, packed_tasks

    pytest.importorskip("sklearn")
    out = cache.parent / "pack"
    pack([read_catalog().tasks["digits"]], "nano", size=8, out=out)
    monkeypatch.setenv("FUSIONBENCH_DATA", str(out))
    hashes, whole = packed_tasks(), repr(packed_data("digits"))

    def judge():
        found = packed_tasks()
        if not found:
            return NAMED
        assert found == hashes
        # The images take long to unpack: their hash is compared before.
        assert repr(packed_data("digits")) == whole
        return SAME

    return out / name, judge


CACHE = {"features": features_judge, "bundle": bundle_judge, "images": images_judge,
         "hash note": note_judge}  # fmt: skip
PACK = ("manifest.json", "tasks/digits.json.xz", "tasks/digits.images.xz")


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", CACHE)
def test_a_damaged_file_of_the_cache_is_never_believed(name, number, cache, injected):
    file, judge = CACHE[name](cache)
    found, counts = run(file, judge, f"cache {name}", number)
    assert set(found) <= {SAME, NAMED} and sum(found.values()) == number
    injected(number, counts)


@pytest.mark.few(1)
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", PACK)
def test_a_damaged_pack_is_refused_in_words(name, number, cache, monkeypatch, injected):
    file, judge = pack_judge(cache, name, monkeypatch)
    found, counts = run(file, judge, f"pack {name}", number)
    assert set(found) <= {SAME, NAMED} and sum(found.values()) == number
    injected(number, counts)
