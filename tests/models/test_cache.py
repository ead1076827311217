"""The cache: files that appear whole, hashes computed once, hidden states within their limit."""

import errno
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_cells import BUDGET, BrightHalf, PixelToyEncoder

from fusionbench.api.errors import UserError
from fusionbench.harness.bundle import (
    bundle_path,
    cached_bundle,
    cut,
    drop_images,
    keep,
    kept_images,
    read_bundle,
    write_bundle,
)
from fusionbench.models.encoders import features
from fusionbench.models.encoders import features as feature_writer
from fusionbench.models.encoders.features import FeatureKey, RowFile
from fusionbench.records.files import cache_dir, file_hash, is_sealed, sha256_of, write_atomic


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))


class Counting:
    """A hash that counts how often it is computed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, path: Path) -> str:
        self.calls += 1
        return sha256_of(path)


@pytest.mark.usefixtures("own_cache")
def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    assert cache_dir("a", "b") == tmp_path / "cache" / "a" / "b"
    assert not (tmp_path / "cache" / "a").exists()
    monkeypatch.delenv("FUSIONBENCH_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "fusionbench"


@pytest.mark.usefixtures("own_cache")
def test_a_file_is_hashed_once_until_its_size_or_time_changes(tmp_path):
    file, count = tmp_path / "weights", Counting()
    file.write_bytes(b"one")
    first = file_hash(file, compute=count)
    assert file_hash(file, compute=count) == first == sha256_of(file) and count.calls == 1
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert file_hash(file, compute=count) == sha256_of(file) != first and count.calls == 2
    file.write_bytes(b"three")
    os.utime(file, ns=(1, 1))
    assert file_hash(file, compute=count) == sha256_of(file) and count.calls == 3


@pytest.mark.usefixtures("own_cache")
@pytest.mark.fault("stored data", "weights replaced, size and time kept", "hashed again")
def test_other_contents_with_size_and_time_kept_are_hashed_anew(tmp_path):
    file, count = tmp_path / "weights", Counting()
    file.write_bytes(b"one")
    first, before = file_hash(file, compute=count), file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_hash(file, compute=count) == sha256_of(file) != first
    other = tmp_path / "copy"
    other.write_bytes(b"six")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert file_hash(file, compute=count) == sha256_of(file) and count.calls == 3


@pytest.mark.usefixtures("own_cache")
@pytest.mark.fault("stored data", "a damaged note of a hash", "hashed again")
@pytest.mark.parametrize("text", ["", "0" * 64, "deadbeef", "\0" * 90, "[" * 5000])
def test_a_note_that_is_not_what_was_written_is_no_hash(text, tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    file_hash(file)
    (note,) = cache_dir("hashes").iterdir()
    note.write_text(text)
    assert file_hash(file) == sha256_of(file)


@pytest.mark.usefixtures("own_cache")
def test_files_are_made_with_the_permissions_that_the_user_asks_for(tmp_path):
    before = os.umask(0o077)
    try:
        write_atomic(tmp_path / "mine", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("own_cache")
def test_two_kinds_of_hash_of_one_file_are_kept_apart(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"one")
    assert file_hash(file, compute=lambda _: "length 3", kind="length") == "length 3"
    assert file_hash(file) == sha256_of(file)


@pytest.mark.usefixtures("own_cache")
def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    file = tmp_path / "x"
    file.write_bytes(b"one")
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(file / "inside a file"))
    assert file_hash(file) == sha256_of(file)


@pytest.mark.usefixtures("own_cache")
def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "file"
    write_atomic(target, b"old")

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


# Files of rows: what NumPy reads is what was written, in whatever order.

ROWS = np.random.default_rng(0).normal(size=(40, 3, 5))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_of_any_order_and_thread_are_the_array(dtype, tmp_path):
    rows = ROWS.astype(dtype)
    file = RowFile(tmp_path / "rows.npy", dtype=dtype, shape=rows.shape)
    with ThreadPoolExecutor(4) as threads:
        starts = np.random.default_rng(1).permutation(range(0, 40, 7))
        list(threads.map(lambda start: file.write(start, rows[start : start + 7]), starts))
    file.finish()
    assert (np.load(tmp_path / "rows.npy", mmap_mode="r") == rows).all()


def test_the_bytes_are_those_that_numpy_saves(tmp_path):
    rows = ROWS.astype(np.float16)
    file = RowFile(tmp_path / "rows.npy", dtype="float16", shape=rows.shape)
    file.write(0, rows)
    file.finish()
    np.save(tmp_path / "numpy.npy", rows)
    written, wanted = ((tmp_path / f"{name}.npy").read_bytes() for name in ("rows", "numpy"))
    assert written.startswith(wanted) and written[len(wanted) :].startswith(b"\n#sha256 ")
    assert is_sealed(tmp_path / "rows.npy")


def test_a_view_is_written_as_it_reads(tmp_path):
    file = RowFile(tmp_path / "rows.npy", dtype="float64", shape=(40, 5, 3))
    file.write(0, ROWS.transpose(0, 2, 1))
    file.finish()
    assert (np.load(tmp_path / "rows.npy") == ROWS.transpose(0, 2, 1)).all()


@pytest.mark.parametrize("rows", [ROWS.astype(np.float32), ROWS[:, :2]])
def test_rows_of_another_kind_are_refused(rows, tmp_path):
    file = RowFile(tmp_path / "rows.npy", dtype="float64", shape=ROWS.shape)
    with pytest.raises(TypeError, match="but the file's are float64"):
        file.write(0, rows)
    file.close()


def test_what_the_system_takes_in_pieces_is_written_whole(tmp_path, monkeypatch):
    put = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: put(fd, data[:100], at))
    file = RowFile(tmp_path / "rows.npy", dtype="float64", shape=ROWS.shape)
    file.write(0, ROWS)
    file.finish()
    assert (np.load(tmp_path / "rows.npy") == ROWS).all()


def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path, monkeypatch):
    from toy_cells import PixelToyEncoder

    from fusionbench.models.encoders import features
    from fusionbench.models.encoders.features import FeatureKey

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "pwrite", full)
    images = np.zeros((4, 8, 8, 3), np.uint8)
    key = FeatureKey(weights="w", size=8, images="i", count=4, precision="fp32", dtype="float32")
    with pytest.raises(OSError, match="No space left"):
        features.encode(PixelToyEncoder(), images, key, [(1,)], limit_gib=1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# Hidden states on disk: written once, whole, and never beyond the limit.


@pytest.fixture
def key(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path))
    return FeatureKey(
        weights="toy", size=4, images="i", count=90, precision="fp32", dtype="float32"
    )


@pytest.fixture
def images():
    return cut("bright_half", BrightHalf().load(), BUDGET)[1]


def test_a_tap_comes_back_as_the_encoder_made_it(key, images):
    encoder = PixelToyEncoder()
    features.encode(encoder, images, key, [(2,), (0, 1, 2)], limit_gib=1)
    states = encoder.hidden_states(torch.from_numpy(images))
    assert torch.allclose(features.read(key, (2,)), states[2], atol=1e-5)
    mean = torch.stack(states[:3]).mean(dim=0)
    assert torch.allclose(features.read(key, (0, 1, 2)), mean, atol=1e-5)


def test_taps_that_are_there_are_not_encoded_again(key, images):
    encoder = PixelToyEncoder()
    features.encode(encoder, images, key, [(2,)], limit_gib=1)
    before = key.path((2,)).stat().st_mtime_ns
    features.encode(encoder, images, key, [(2,), (3,)], limit_gib=1)
    assert key.path((2,)).stat().st_mtime_ns == before
    assert features.missing_taps(key, [(2,), (3,), (4,)]) == [(4,)]


def test_which_taps_are_missing_changes_no_bit(key, images, tmp_path, monkeypatch):
    encoder = PixelToyEncoder()
    features.encode(encoder, images, key, [(1,), (3,)], limit_gib=1)
    together = features.read(key, (3,)).clone()
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "other"))
    features.encode(encoder, images, key, [(3,)], limit_gib=1)
    assert torch.equal(together, features.read(key, (3,)))


def test_a_full_cache_refuses_with_the_numbers(key, images):
    with pytest.raises(UserError, match=r"grow to \d+\.\d\d KiB, the limit is 1\.00 KiB") as error:
        features.encode(PixelToyEncoder(), images, key, [(2,)], limit_gib=2**-20)
    assert "--limit-cache" in error.value.hint
    assert not list(key.path((2,)).parent.glob("*"))


@pytest.mark.fault("stored data", "an encoding that is interrupted", "no file that counts")
def test_an_interrupted_pass_leaves_no_file_that_counts(key, images, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(features, "_averaged", fail)
    with pytest.raises(KeyboardInterrupt):
        features.encode(PixelToyEncoder(), images, key, [(2,)], limit_gib=1)
    assert not list(key.path((2,)).parent.glob("*"))


def test_states_beyond_float16_are_refused_in_words(key, images):
    class Loud(PixelToyEncoder):
        def block(self, index, tokens):
            return super().block(index, tokens) + 1e6

    with pytest.raises(UserError, match="float16"):
        small = replace(key, dtype="float16")
        features.encode(Loud(), images, small, [(2,)], limit_gib=1)


def test_states_are_written_by_a_thread_that_ends_with_the_pass(key, images, monkeypatch):
    seen, store = [], feature_writer._store

    def watched(*given):
        seen.append(threading.current_thread() is threading.main_thread())
        store(*given)

    monkeypatch.setattr(feature_writer, "_store", watched)
    monkeypatch.setattr(features, "_BATCH", 16)
    features.encode(PixelToyEncoder(), images, key, [(1,), (2, 3)], limit_gib=1)
    assert len(seen) == 2 * -(-len(images) // 16) > 4 and not any(seen)
    assert not [one for one in threading.enumerate() if one.name.startswith("features")]
    whole = PixelToyEncoder().hidden_states(torch.from_numpy(images))
    torch.testing.assert_close(features.read(key, (2, 3)), (whole[2] + whole[3]) / 2)


def test_half_precision_is_rounded_by_torch_as_by_numpy():
    # Files that numpy rounded are still read: what is rounded on a GPU must not differ.
    rng = np.random.default_rng(0)
    exact = (rng.normal(size=4096) * 10.0 ** rng.integers(-9, 5, 4096)).astype(np.float32)
    halves = np.arange(2048, 4096, dtype=np.float32) + 0.5  # ties
    values = np.concatenate([exact, halves, halves * 2.0**-30])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    assert torch.from_numpy(values).to(torch.float16).numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["weights", "size", "images", "count", "precision", "dtype"])
def test_everything_that_decides_the_states_is_in_the_key(key, name):
    value = getattr(key, name)
    other = value + 1 if isinstance(value, int) else value + "x"
    assert replace(key, **{name: other}).path((1,)) != key.path((1,))


def test_nothing_can_change_a_feature_file(key, images):
    features.encode(PixelToyEncoder(), images, key, [(2,)], limit_gib=1)
    before = key.path((2,)).read_bytes()
    features.read(key, (2,)).zero_()
    assert key.path((2,)).read_bytes() == before


def test_a_bundle_is_cut_to_the_budget_and_comes_back_whole(tmp_path):
    budget = replace(BUDGET, train_items=7, val_items=4, test_items=6)
    data = BrightHalf().load()
    bundle, images = cut("bright_half", data, budget)
    assert [len(part) for part in (bundle.train, bundle.val, bundle.test)] == [7, 4, 6]
    assert bundle.count == len(images) == 4 + 2 + 3
    assert (images[bundle.test.rows] == data.images[data.test.images[:6]]).all()
    assert bundle.test.groups[0] == bundle.test.groups[1] != bundle.test.groups[2]
    write_bundle(bundle, tmp_path / "b.json")
    again = read_bundle(tmp_path / "b.json")
    assert again.questions == bundle.questions and again.test.items == bundle.test.items
    np.testing.assert_array_equal(again.train.rows, bundle.train.rows)
    assert bundle_path("t", "h", budget) != bundle_path("t", "h", BUDGET)


def test_any_layer_is_stored_after_the_final_norm_where_a_tap_asks_for_it(key, images):
    encoder = PixelToyEncoder()
    shape = encoder.shape
    taps = [(shape.normed_layer(layer),) for layer in (-1, -2, 0)]
    assert taps == [(shape.layers + 1,), (shape.layers + 2,), (2 * shape.layers + 1,)]
    assert taps[0] == (shape.normed,)
    features.encode(encoder, images, key, [*taps, (2, shape.normed_layer(2))], limit_gib=1)
    states = [state.numpy() for state in encoder.hidden_states(torch.from_numpy(images))]
    for tap, layer in zip(taps, (-1, -2, 0), strict=True):
        assert np.allclose(features.read(key, tap), _layer_norm(states[layer]), atol=1e-4)
    mean = (states[2] + _layer_norm(states[2])) / 2
    assert np.allclose(features.read(key, (2, shape.normed_layer(2))), mean, atol=1e-4)


def test_an_index_of_a_tap_names_its_layer_and_norm():
    shape = PixelToyEncoder().shape
    for layer in range(shape.layers + 1):
        assert shape.source(layer) == (layer, False)
        assert shape.source(shape.normed_layer(layer)) == (layer, True)
        assert shape.has(layer) and shape.has(shape.normed_layer(layer))
    # An index one too large is no layer after the norm, though it is equal to one.
    assert shape.normed == shape.layers + 1 and not shape.has(shape.layers + 1)
    assert not shape.has(-1) and not shape.has(1.5)
    with pytest.raises(ValueError, match="does not exist"):
        shape.normed_layer(shape.layers + 1)


def _layer_norm(values):
    """Of the toy encoder, without scale and shift."""
    centred = values - values.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)


@pytest.mark.fault(
    "stored data", "cache files flipped, cut or swapped", "named, dropped, made again"
)
def test_a_damaged_feature_file_is_named_dropped_and_made_again(key, images, caplog):
    features.encode(PixelToyEncoder(), images, key, [(2,), (3,)], limit_gib=1)
    whole = features.read(key, (2,)).clone()
    path = key.path((2,))
    before, text = path.stat(), path.read_bytes()
    path.write_bytes(text[: len(text) // 2] + bytes(len(text) - len(text) // 2))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert features.missing_taps(key, [(2,), (3,)]) == [(2,)]
    assert str(path) in caplog.text and "made again" in caplog.text and not path.exists()
    with pytest.raises(OSError, match="damaged or missing"):
        features.read(key, (2,))
    features.encode(PixelToyEncoder(), images, key, [(2,), (3,)], limit_gib=1)
    assert torch.equal(features.read(key, (2,)), whole)


@pytest.mark.fault(
    "stored data", "cache files flipped, cut or swapped", "named, dropped, made again"
)
def test_a_feature_file_under_the_name_of_another_is_not_believed(key, images):
    features.encode(PixelToyEncoder(), images, key, [(2,), (3,)], limit_gib=1)
    shutil.copy(key.path((3,)), key.path((2,)))
    assert features.missing_taps(key, [(2,), (3,)]) == [(2,)]


def test_a_complete_cache_is_read_where_nothing_can_be_written(key, images, monkeypatch):
    features.encode(PixelToyEncoder(), images, key, [(2,)], limit_gib=1)
    budget = replace(BUDGET, train_items=7)
    keep("bright_half", "d", BrightHalf().load(), budget)
    bundle = cached_bundle(bundle_path("bright_half", "d", budget))

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("unlink", "mkdir", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    assert features.missing_taps(key, [(2,)]) == []
    drop_images(bundle)


@pytest.mark.fault("stored data", "a link planted under the name of a temporary file", "refused")
def test_a_link_that_somebody_planted_under_a_temporary_name_is_not_followed(tmp_path):
    victim, planted = tmp_path / "mine", tmp_path / "x.partial"
    victim.write_text("mine")
    planted.symlink_to(victim)
    with pytest.raises(FileExistsError):
        features.RowFile(planted, dtype="float32", shape=(2, 1, 1))
    assert victim.read_text() == "mine"


@pytest.mark.fault(
    "stored data", "cache files flipped, cut or swapped", "named, dropped, made again"
)
def test_images_and_bundles_are_what_was_kept_or_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path))
    keep("bright_half", "d", BrightHalf().load(), BUDGET)
    path = bundle_path("bright_half", "d", BUDGET)
    bundle, (images,) = cached_bundle(path), (tmp_path / "images").iterdir()
    assert np.array_equal(kept_images(bundle), cut("bright_half", BrightHalf().load(), BUDGET)[1])
    # Images of another set, sound in themselves.
    other = replace(bundle, images="f" * 32)
    shutil.copy(images, tmp_path / "images" / f"{other.images[:24]}.npy")
    assert kept_images(other) is None
    text = path.read_text()
    path.write_text(text.replace('"answers": [0, 1', '"answers": [1, 1', 1))
    assert path.read_text() != text and cached_bundle(path) is None and not path.exists()
    images.write_bytes(images.read_bytes()[:-200])
    assert kept_images(bundle) is None and not images.exists()
    assert caplog.text.count("made again") == 3
