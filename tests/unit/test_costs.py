"""The cost model: its measurement, its file, and the repair of disturbed tables."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace

import pytest
import tiny

import orthrus
from orthrus import machine_load
from orthrus.bench.gpu import run
from orthrus.cli import _costs
from orthrus.cli.bench import gpu
from orthrus.decoding.planning import calibration
from orthrus.decoding.planning import measure as costs
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.machine_load import LoadReading


def test_no_pass_costs_more_than_one_of_more_rows(monkeypatch):
    """With a fake clock under which one-row passes take longest."""
    now, passes = [0.0], []

    def clock():
        now[0] += 10.0 if passes and passes[-1] == 1 else 1.0
        return now[0]

    def run(runner, rows, *args, **kwargs):
        passes.append(len(rows[0]))
        return original(runner, rows, *args, **kwargs)

    runner = tiny.runner()
    original = type(runner).ar
    monkeypatch.setattr(type(runner), "ar", run)
    monkeypatch.setattr(costs, "perf_counter", clock)
    measured = costs.measure(runner)
    for table in (measured.rows, measured.drafting):
        seconds = [each for _, each in table]
        assert seconds == sorted(seconds)
    assert 1 in passes and measured.rows[0][1] < 10.0
    assert measured.drafting[0][1] >= costs.DRAFT_OVERHEAD <= measured.block_overhead


@pytest.mark.parametrize("batch", [1, 3])
def test_every_row_of_a_batch_attends_to_its_keys(batch):
    priced = CostModel(((1, 1.0), (8, 2.0), (64, 9.0)), ((2, 1.5), (8, 2.5)), 0.3, 0.2, 1e-3, 2e-3, 5e-4)
    one, four = (priced.ar(batch, rows, 1000.0) - priced.ar(batch, rows, 0.0) for rows in (1, 4))
    assert one == pytest.approx(batch * 1.0)
    assert four == pytest.approx(batch * (1.0 + 3 * 0.5))
    assert priced.diffuse(batch, 4, 1000.0) - priced.diffuse(batch, 4, 0.0) == pytest.approx(four)


@pytest.mark.parametrize("seed", range(8))
def test_passes_of_more_and_more_rows_cost_what_each_costs_alone(seed):
    priced = tiny.random_costs(seed)
    for batch, others in ((1, 0), (3, 0), (2, 16), (60, 40)):
        seconds = priced.ar_up_to(batch, 150, others, 300.0)
        beside = others * priced.row_key * 300.0
        alone = [priced.ragged(batch, batch + n + others, 0, 0, 300.0) - beside for n in range(151)]
        assert seconds == pytest.approx(alone)


@pytest.mark.parametrize(("share", "disturbed"), [(1.0, False), (0.95, False), (0.5, True), (0.1, True)])
def test_steady_work_of_other_programs_is_seen(monkeypatch, share, disturbed):
    """All passes take the same time, of which the thread that measures runs only a part."""
    now = [0.0]

    def clock():
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(costs, "perf_counter", clock)
    monkeypatch.setattr(costs, "thread_time", lambda: share * now[0])
    monkeypatch.setattr(machine_load, "read", lambda: LoadReading(now[0], now[0], now[0]))
    assert costs.measure(tiny.runner()).disturbed == disturbed


@pytest.mark.parametrize(("foreign", "disturbed"), [(0.0, False), (0.2, False), (0.8, True), (2.0, True)])
def test_work_of_other_programs_is_seen_though_this_thread_never_waits(monkeypatch, foreign, disturbed):
    """A team of two threads on two processors: where others slow the second one down, the first one spins."""
    now = [0.0]

    def clock():
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(costs, "perf_counter", clock)
    monkeypatch.setattr(costs, "thread_time", lambda: now[0])
    monkeypatch.setattr(costs, "kernel_threads", lambda: 2)
    monkeypatch.setattr(machine_load, "usable_processors", lambda: 2)
    monkeypatch.setattr(machine_load, "read", lambda: LoadReading(now[0], 0.9 * now[0], (0.9 + foreign) * now[0]))
    assert costs.measure(tiny.runner()).disturbed == disturbed


def test_others_cost_nothing_on_processors_that_the_threads_leave_free():
    assert machine_load.slowdown(foreign=3.0, threads=4, processors=8) == 0.0
    assert machine_load.slowdown(foreign=5.0, threads=4, processors=8) == pytest.approx(1 / 3)
    assert machine_load.slowdown(foreign=9.0, threads=4, processors=8) == math.inf
    assert machine_load.slowdown(foreign=0.0, threads=8, processors=4) == 0.0


def test_the_load_of_the_processors_that_this_process_may_run_on(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    monkeypatch.setattr(machine_load, "STAT", stat)
    monkeypatch.setattr(machine_load.os, "sched_getaffinity", lambda pid: {1})
    monkeypatch.setattr(machine_load.os, "sysconf", lambda name: 100)
    stat.write_text(
        "cpu  900 0 0 900 0 0 0 0 0 0\ncpu0 9 0 0 0 0 0 0 0 0 0\ncpu1 100 10 20 999 99 3 4 5 50 0\nintr 1\n"
    )
    assert machine_load.read().busy == pytest.approx(1.42)
    for broken in ("", "cpu1 x", "cpu1 1 2"):
        stat.write_text(broken)
        assert not machine_load.read().busy
    stat.unlink()
    assert machine_load.read().busy is None
    one, two = LoadReading(0.0, 0.0, None), LoadReading(9.0, 1.0, None)
    assert machine_load.slowdown_between(one, two, 2) == 0.0
    assert machine_load.slowdown_between(LoadReading(0, 0, 0), LoadReading(0.1, 0, 0.1), 1) == 0.0  # too short to tell


TABLE = CostModel(((1, 1.0), (8, 2.0)), ((2, 1.5), (8, 2.5)), 0.3, 0.2, 1e-3, 2e-3, 5e-4, 0.02)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": []}, {"rows": [[1, 1.0], [1, 2.0]]}, {"rows": [[8, 1.0], [1, 2.0]]}, {"rows": [[1, -1.0]]},
        {"drafting": "fast"}, {"drafting": [[1]]}, {"key": "a"}, {"key": -1.0}, {"block": float("nan")},
        {"block_overhead": None}, {"rows": None}, {"more": 1.0}, {"spread": [0.1]},
    ],
    ids=str,
)  # fmt: skip
def test_an_invalid_table_is_refused(change):
    content = json.loads(json.dumps(TABLE.as_dict()))
    assert CostModel.of(content) == TABLE
    with pytest.raises((ValueError, TypeError)):
        CostModel.of({**content, **change})
    for other in ([], 3, None, "table", {}):
        with pytest.raises(ValueError, match="not a cost table"):
            CostModel.of(other)


def test_measuring_is_limited_in_time_on_a_slow_machine(monkeypatch):
    now, drafted, whole = [0.0], [], type(tiny.runner()).diffuse_rows

    def clock():
        now[0] += 1.0
        return now[0]

    def diffuse(*arguments, **more):
        drafted.append(arguments)
        return whole(*arguments, **more)

    monkeypatch.setattr(costs, "perf_counter", clock)
    monkeypatch.setattr(type(tiny.runner()), "diffuse_rows", diffuse)
    costs.measure(tiny.runner())
    seldom = sum(count > costs.MANY_ROWS for count in costs.DRAFT_ROWS)
    warm, always = len(costs.DRAFT_ROWS), costs.MIN_ROUNDS * (len(costs.DRAFT_ROWS) - seldom)
    assert len(drafted) == warm + costs.REPEATS * (always + seldom)
    assert costs.MIN_ROUNDS == 1


def test_a_change_of_pace_makes_no_kind_of_pass_look_faster():
    """Every other round takes twice as long. One kind runs in slow rounds alone, and one pass is disturbed."""
    seconds = {rows: 1.0 + rows / 8 for rows in (1, 2, 4, 8)}
    rounds = [{rows: own * (2 - n % 2) for rows, own in seconds.items()} for n in range(8)]
    for slow in rounds[::4]:
        slow["many"] = 8.0
    rounds[3][8] = 9.0
    assert costs._typical(rounds) == pytest.approx({**seconds, "many": 4.0})


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Loads a model whose measurements are scripted: each takes the next one of its `tables`."""
    monkeypatch.setenv("ORTHRUS_CACHE", str(tmp_path / "cache"))
    checkpoint = str(tiny.save_checkpoint(tmp_path / "model"))
    tables = []
    monkeypatch.setattr(calibration, "measure", lambda runner, interrupted=None: tables.pop(0))

    def load():
        loaded = orthrus.load(checkpoint, dtype="float32")
        loaded.tables, loaded.cached = tables, tmp_path / "cache" / f"{calibration.Calibration(loaded.runner).key}.json"
        return loaded

    return load


def test_costs_are_measured_once(model):
    first = model()
    first.tables.append(TABLE)
    assert first.costs() == first.costs() == TABLE
    second = model()
    assert second.costs() == TABLE


def test_a_first_answer_is_planned_by_an_assumed_table_until_one_is_measured(model):
    first, asked = model(), {"max_new_tokens": 8}
    assert first.assume_costs() and not first.cached.exists()
    assert first.costs().ar(1, 1, 0) < first.costs().ar(1, 8, 0) < first.costs().ar(1, 64, 0)
    assert first.generate([1, 2, 3], **asked).tokens == first.generate([1, 2, 3], cycle="ar", **asked).tokens
    first.tables.append(TABLE)
    assert first.costs(refresh=True) == TABLE
    second = model()
    assert not second.assume_costs() and second.costs() == TABLE


@pytest.mark.parametrize("damage", ["", "{", "[]", "3", '{"rows": [[1, 1.0]]}', "[" * 100_000])
def test_a_damaged_table_is_measured_again_with_a_warning(model, caplog, damage):
    first = model()
    first.tables += [TABLE, replace(TABLE, block=0.5)]
    first.costs()
    first.cached.write_text(damage)
    assert model().costs().block == 0.5
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{first.cached} is damaged" in caplog.text
    assert model().costs().block == 0.5


def test_a_disturbed_table_is_measured_again_later_and_the_smaller_spread_is_kept(model, monkeypatch):
    worse, better = replace(TABLE, spread=0.5), replace(TABLE, spread=0.1)
    first = model()
    first.tables += [replace(TABLE, spread=0.3), worse, better]
    assert first.costs().disturbed
    assert model().costs().spread == 0.3  # not at once: the other programs probably still run
    monkeypatch.setattr(calibration, "MEASURE_AGAIN_AFTER", -1.0)
    assert model().costs().spread == 0.3
    assert model().costs().spread == 0.1
    assert model().costs().spread == 0.1
    assert first.tables == []


@pytest.mark.parametrize(
    ("earlier", "newer", "kept"), [(0.3, 0.5, 0.3), (0.02, 0.5, 0.02), (0.3, 0.1, 0.1), (0.02, 0.06, 0.06)]
)
def test_measuring_on_request_keeps_the_calmer_of_two_tables(model, earlier, newer, kept):
    """An undisturbed newer one wins, because it fits what the machine is like now."""
    first = model()
    first.tables += [replace(TABLE, spread=earlier), replace(TABLE, spread=newer)]
    first.costs()
    assert first.costs(refresh=True).spread == first.costs().spread == model().costs().spread == kept
    assert first.calibration.newest.spread == newer


def test_an_answer_planned_by_a_disturbed_table_does_not_replace_it_by_a_worse_one(model, monkeypatch):
    first = model()
    first.tables += [replace(TABLE, spread=0.3), replace(TABLE, spread=0.9)]
    assert first.costs().disturbed
    monkeypatch.setattr(calibration, "MEASURE_AGAIN_AFTER", -1.0)
    later = model()
    assert later.assume_costs()
    assert later.costs(refresh=True).spread == 0.3
    monkeypatch.setattr(calibration, "MEASURE_AGAIN_AFTER", 300.0)
    assert model().costs().spread == 0.3


def test_an_assumed_table_is_never_kept_for_a_measured_one(model):
    first = model()
    assert first.assume_costs()
    first.tables.append(replace(TABLE, spread=0.9))
    assert first.calibration.measure_again(lambda: False).spread == 0.9
    assert model().costs().spread == 0.9


def test_a_benchmark_measures_a_disturbed_or_old_table_again(model, monkeypatch):
    first = model()
    first.tables += [replace(TABLE, spread=spread) for spread in (0.3, 0.5, 0.2, 0.1, 0.05)]
    assert first.costs().disturbed
    assert model().calibration.costs_for_benchmark().spread == 0.2  # of three disturbed ones
    assert model().calibration.costs_for_benchmark().spread == 0.1
    assert model().calibration.costs_for_benchmark().spread == 0.1
    monkeypatch.setattr(calibration, "BENCHMARK_MAX_AGE", -1.0)
    assert model().calibration.costs_for_benchmark().spread == 0.05
    assert first.tables == []


def test_a_first_answer_waits_for_no_table_that_is_due_again(model, monkeypatch):
    first = model()
    first.tables += [replace(TABLE, spread=0.3), replace(TABLE, spread=0.1)]
    assert first.costs().disturbed
    assert not model().assume_costs()
    monkeypatch.setattr(calibration, "MEASURE_AGAIN_AFTER", -1.0)
    later = model()
    assert later.assume_costs() and later.costs().spread == 0.3
    assert later.costs(refresh=True).spread == model().costs().spread == 0.1


def test_a_table_is_measured_again_in_a_running_process(model):
    first = model()
    first.tables += [replace(TABLE, spread=0.3), replace(TABLE, spread=0.5), replace(TABLE, spread=0.1)]
    assert first.costs().disturbed
    assert first.calibration.measure_again(lambda: False).spread == 0.3
    assert first.calibration.measure_again(lambda: False).spread == first.costs().spread == 0.1
    assert model().costs().spread == 0.1


def test_measuring_ends_before_the_next_pass_when_interrupted(model, monkeypatch):
    first, passes = model(), []
    first.tables.append(replace(TABLE, spread=0.3))
    before = first.costs()
    monkeypatch.setattr(calibration, "measure", costs.measure)
    original = type(first.runner).ar_and_diffuse
    monkeypatch.setattr(
        type(first.runner), "ar_and_diffuse", lambda *given, **more: passes.append(1) or original(*given, **more)
    )
    assert first.calibration.measure_again(lambda: len(passes) == 2) is None
    assert len(passes) == 2 and first.costs() == model().costs() == before


@pytest.mark.parametrize(
    ("url", "busy", "noted"),
    [("http://localhost:1", 1.5, True), ("http://127.0.0.1:1", 0.01, False), ("http://elsewhere:1", 1.5, False)],
)
def test_the_load_beside_a_server_is_read_while_it_is_idle(monkeypatch, capsys, url, busy, noted):
    """What the server itself does cannot be told from what others do."""
    now = [0.0]
    monkeypatch.setattr(_costs, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(machine_load, "usable_processors", lambda: 2)
    monkeypatch.setattr(machine_load, "read", lambda: LoadReading(now[0], 0.0, busy * now[0]))
    with _costs.timed_server(url) as load:
        now[0] += 100.0
    assert load.disturbed == noted
    assert ("while the server had nothing to do" in capsys.readouterr().err) == noted
    assert load.foreign == pytest.approx(busy if "elsewhere" not in url else 0.0)


def test_a_measurement_of_a_gpu_is_watched_for_other_programs(monkeypatch, capsys, tmp_path):
    readings = iter([LoadReading(0.0, 0.0, 0.0), LoadReading(10.0, 0.0, 20.0)])
    monkeypatch.setattr(machine_load, "read", lambda: next(readings))
    monkeypatch.setattr(machine_load, "usable_processors", lambda: 2)
    monkeypatch.setattr(run, "run", lambda *_, **__: None)
    gpu.command(output=tmp_path / "out", parts=["laws"], dry_run=True)
    assert "other programs kept 2.0 of 2 processors busy" in " ".join(capsys.readouterr().err.split())
