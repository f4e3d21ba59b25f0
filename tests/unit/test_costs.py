"""The cost table: what is measured, set right where others disturbed it."""

from __future__ import annotations

import pytest
import tiny

from orthrus.decoding import costs


def test_no_pass_costs_more_than_one_of_more_rows(monkeypatch):
    """By a clock under which the passes of one row take longest."""
    now, passes = [0.0], []

    def clock():
        now[0] += 10.0 if passes and passes[-1] == 1 else 1.0
        return now[0]

    def run(decoder, rows, *args, **kwargs):
        passes.append(rows.shape[1])
        return original(decoder, rows, *args, **kwargs)

    decoder = tiny.decoder()
    original = type(decoder).ar
    monkeypatch.setattr(type(decoder), "ar", run)
    monkeypatch.setattr(costs, "perf_counter", clock)
    found = costs.measure(decoder)
    for table in (found.rows, found.drafting):
        seconds = [each for _, each in table]
        assert seconds == sorted(seconds)
    assert 1 in passes and found.rows[0][1] < 10.0
    assert found.drafting[0][1] >= costs.AROUND <= found.beside


@pytest.mark.parametrize("batch", [1, 3])
def test_the_grid_is_the_price_of_every_pass_in_it(batch):
    """And what rows have to read more of, the longer the context, is part of it."""
    priced = costs.Costs(((1, 1.0), (8, 2.0), (64, 9.0)), ((2, 1.5), (8, 2.5)), 0.3, 0.2, 1e-3, 2e-3, 5e-4)
    grid = priced.grid(batch, 6, 4, 5, 700.0)
    for blocks in range(4):
        for rows in range(1, 7):
            assert grid[blocks, rows - 1] == pytest.approx(priced.ar_and_diffuse(batch, rows, blocks, 5, 700.0))
    assert grid[0, 0] == pytest.approx(priced.ar(batch, 1, 700.0))
    one, four = (priced.ar(batch, rows, 1000.0) - priced.ar(batch, rows, 0.0) for rows in (1, 4))
    assert one == pytest.approx(batch * 1.0)
    assert four == pytest.approx(batch * (1.0 + 3 * 0.5))
    assert priced.diffuse(batch, 4, 1000.0) - priced.diffuse(batch, 4, 0.0) == pytest.approx(four)
