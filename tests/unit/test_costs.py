"""The cost table: what is measured, set right where others disturbed it."""

from __future__ import annotations

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
