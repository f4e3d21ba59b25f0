"""The cache of tensors: round trips, damage, limits, and disks that cannot be written."""

from __future__ import annotations

import errno
import gc
import os
import time
from pathlib import Path

import pytest
import torch

from orthrus import tensor_cache
from orthrus.tensor_cache import Entry

TENSORS = {
    "weights": torch.arange(70_000, dtype=torch.int16).view(70, -1).bfloat16(),
    "codes": torch.arange(-128, 127, dtype=torch.int8).view(5, 51),
    "scales": torch.rand(3, 1, 7),
    "halves": torch.rand(9).half(),
    "empty": torch.empty(0, 4),
    "transposed": torch.rand(4, 6).T,
}


@pytest.fixture(autouse=True)
def _own_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("ORTHRUS_CACHE", str(tmp_path))
    monkeypatch.delenv(tensor_cache.LIMIT, raising=False)


def kept(name="entry", values=None, tensors=None):
    assert tensor_cache.save(name, Entry(values or {"a": [1, None, "x"]}, tensors or TENSORS))
    return tensor_cache.directory() / f"{name}{tensor_cache.SUFFIX}"


def test_an_entry_comes_back_as_it_was():
    kept()
    entry = tensor_cache.load("entry")
    assert entry.values == {"a": [1, None, "x"]}
    assert list(entry.tensors) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert entry.tensors[name].dtype == tensor.dtype and torch.equal(entry.tensors[name], tensor)
        assert entry.tensors[name].data_ptr() % 64 == 0
    assert tensor_cache.load("another") is None


def test_an_entry_is_a_private_mapping_that_ends_with_its_tensors():
    path = kept()
    entry = tensor_cache.load("entry")
    entry.tensors["codes"].zero_()
    assert torch.equal(tensor_cache.load("entry").tensors["codes"], TENSORS["codes"])
    assert str(path) in Path("/proc/self/maps").read_text()
    del entry
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("place", ["header", "start", "middle", "end"])
def test_a_changed_byte_is_found_and_said(place, caplog):
    path = kept()
    size = path.stat().st_size
    at = {"header": 40, "start": tensor_cache.ALIGNMENT, "middle": size // 2, "end": size - 1}[place]
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)
    assert tensor_cache.load("entry") is None
    assert "is damaged" in caplog.text and str(path) in caplog.text


@pytest.mark.parametrize("left", [0, 10, 5000, -1])
def test_a_truncated_entry_is_found(left, caplog):
    path = kept()
    with path.open("rb+") as file:
        file.truncate(left if left >= 0 else path.stat().st_size - 1)
    assert tensor_cache.load("entry") is None and "is damaged" in caplog.text
    assert kept() and tensor_cache.load("entry") is not None


def test_the_least_recently_used_entries_go_first(monkeypatch):
    each = {"data": torch.zeros(2**18)}
    first, second = kept("first", tensors=each), kept("second", tensors=each)
    for path, age in ((first, 50), (second, 100)):
        os.utime(path, (time.time() - age, time.time() - age))
    monkeypatch.setenv(tensor_cache.LIMIT, str(2.5 * 2**20 / 2**30))
    third = kept("third", tensors=each)
    assert first.exists() and third.exists() and not second.exists()
    assert tensor_cache.used() == first.stat().st_size + third.stat().st_size <= tensor_cache.limit()
    os.utime(first, (1, 1))
    assert tensor_cache.load("first") is not None
    assert first.stat().st_mtime > 1


def test_what_a_killed_process_left_is_removed_after_a_while():
    tensor_cache.directory().mkdir(parents=True)
    old, new = tensor_cache.directory() / "a.part", tensor_cache.directory() / "b.part"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    kept()
    assert not old.exists() and new.exists()


def test_a_limit_of_zero_keeps_nothing_and_a_wrong_one_is_refused(monkeypatch):
    monkeypatch.setenv(tensor_cache.LIMIT, "0")
    assert not tensor_cache.save("entry", Entry({}, TENSORS))
    monkeypatch.setenv(tensor_cache.LIMIT, "much")
    with pytest.raises(ValueError, match="must be a number of GiB, not 'much'"):
        tensor_cache.limit()


def test_the_default_limit_is_bounded_by_the_disk(monkeypatch):
    assert 0 < tensor_cache.limit() <= tensor_cache.MAX_BYTES
    monkeypatch.setattr(tensor_cache.shutil, "disk_usage", lambda _: tensor_cache.shutil._ntuple_diskusage(9, 5, 4000))
    assert tensor_cache.limit() == 1000


def test_a_full_disk_is_no_error_and_leaves_nothing(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_cache.os, "pwrite", full)
    assert not tensor_cache.save("entry", Entry({}, TENSORS))
    assert list(tensor_cache.directory().iterdir()) == []


def test_a_directory_that_cannot_be_made_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORTHRUS_CACHE", str(tmp_path / "file"))
    assert not tensor_cache.save("entry", Entry({}, TENSORS)) and tensor_cache.load("entry") is None
