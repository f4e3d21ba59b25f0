"""The stamp by which derived files are cached changes with every file that was replaced or written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import torch

from orthrus import file_cache
from orthrus.checkpoint import hub

BYTES = 3_000_001


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(BYTES))
    return path


def with_times_of(path, state):
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)


def test_a_stamp_stays_while_its_files_do(weights, tmp_path):
    assert file_cache.stamp(weights) == file_cache.stamp(weights)
    link = tmp_path / "link"
    link.symlink_to(weights)
    assert file_cache.stamp(link) == file_cache.stamp(weights)


def test_a_write_that_keeps_size_and_times_changes_the_stamp(weights):
    before, state = file_cache.stamp(weights), weights.stat()
    with weights.open("r+b") as file:
        file.seek(BYTES // 2)
        file.write(b"x")
    with_times_of(weights, state)
    assert file_cache.stamp(weights) != before


def test_a_replacement_that_keeps_size_and_times_changes_the_stamp(weights, tmp_path):
    before, state = file_cache.stamp(weights), weights.stat()
    other = tmp_path / "other"
    other.write_bytes(weights.read_bytes())
    with_times_of(other, state)
    other.replace(weights)
    assert file_cache.stamp(weights) != before


@dataclass
class State:
    """The state of a file as a read-only image gives it."""

    st_size: int = BYTES
    st_mtime_ns: int = 1
    st_ctime_ns: int = 1
    st_ino: int = 1


def stamped(monkeypatch, weights, **state):
    """The stamp of a file in an image."""
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", lambda *_, **__: State(**state))
        return file_cache.stamp(weights)


@pytest.mark.parametrize("field", ["st_mtime_ns", "st_ctime_ns", "st_ino", "st_size"])
def test_each_field_of_a_state_changes_the_stamp(monkeypatch, weights, field):
    """Without the others: what is sampled of these files is equal."""
    before = stamped(monkeypatch, weights)
    assert stamped(monkeypatch, weights) == before
    assert stamped(monkeypatch, weights, **{field: BYTES - 1}) != before


@pytest.mark.parametrize("size", [1, 5000, file_cache.WINDOWS * file_cache.WINDOW])
def test_every_byte_of_a_small_file_counts(monkeypatch, weights, size):
    weights.write_bytes(bytes(size))
    before = stamped(monkeypatch, weights, st_size=size)
    for place in {0, size // 3, size // 2, size - 1}:
        weights.write_bytes(bytes(place) + b"x" + bytes(size - place - 1))
        assert stamped(monkeypatch, weights, st_size=size) != before


def test_other_weights_in_a_large_file_count_although_few_bytes_are_read(monkeypatch, weights):
    read, sizes = os.pread, []
    monkeypatch.setattr(os, "pread", lambda file, count, at: sizes.append(count) or read(file, count, at))
    before = stamped(monkeypatch, weights)
    assert sum(sizes) == file_cache.WINDOWS * file_cache.WINDOW
    weights.write_bytes(bytes(BYTES - 1) + b"x")
    assert stamped(monkeypatch, weights) != before
    weights.write_bytes(os.urandom(BYTES))
    assert stamped(monkeypatch, weights) != before


def test_weights_from_an_archive_that_keeps_times_are_not_taken_for_the_old_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("ORTHRUS_CACHE", str(tmp_path / "cache"))
    home = tiny.save_checkpoint(tmp_path / "model")
    before = hub.load(str(home), dtype=torch.float32).backbone
    file = home / "model.safetensors"
    state = file.stat()
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    with_times_of(file, state)
    after = hub.load(str(home), dtype=torch.float32).backbone
    assert after != before
