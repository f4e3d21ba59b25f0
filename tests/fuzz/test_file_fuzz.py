"""Some cases of the file fuzz: every case loads, or raises a ValueError that names one of its files."""

from __future__ import annotations

import os

import pytest
from fuzz import files


@pytest.fixture
def own_environment(monkeypatch):
    """Restore the environment variables that the fuzz sets."""
    for name in ("ORTHRUS_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, os.environ[name])


def test_mutated_files_load_or_are_refused_by_name(tmp_path, own_environment):
    report = files.run(tmp_path, seed=0, start=0, count=150)
    assert report.failures == []
    assert sum(sum(counts.values()) for counts in report.counts.values()) == 150
    assert len(report.counts) > 10
    outcomes = sum(report.counts.values(), start=files.Counter())
    assert outcomes["loaded"] > 10
    assert outcomes["ValueError"] > 50


def test_a_case_is_a_function_of_seed_and_index(tmp_path, own_environment):
    written = []
    for name in ("one", "two"):
        kept = tmp_path / f"{name}-kept"
        kept.mkdir()
        files.run(tmp_path / name, seed=3, start=7, count=4, keep=kept)
        written.append({
            (case.name, file.name): file.read_bytes()
            for case in sorted(kept.iterdir()) for file in sorted(case.iterdir()) if file.is_file()
        })  # fmt: skip
    assert written[0] == written[1]
    assert len({case for case, _ in written[0]}) == 4


def test_the_fuzz_reports_every_other_error(tmp_path, own_environment, monkeypatch):
    """If the loader raises any other error, or does not name the file, every case fails."""
    for error in (KeyError("vocab_size"), RecursionError(), MemoryError(), ValueError("something is wrong")):

        def load(*_, _error=error, **__):
            raise _error

        with monkeypatch.context() as patch:
            patch.setattr(files.hub, "describe", load)
            report = files.run(tmp_path / type(error).__name__, seed=0, start=0, count=3)
        assert len(report.failures) == 3
        assert report.failures[1].startswith("--seed 0 --start 1 --count 1")
