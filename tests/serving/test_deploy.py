"""The files of `deploy/` agree with the server."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import typer

from orthrus.cli.serve import command
from orthrus.serving.metrics import Load, Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"


def series():
    """The names of all series, as queries use them."""
    metrics, names = Metrics("m", lambda: Load(0, 0, 0.0, 0)), set()
    for family in metrics.registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + suffix for suffix in suffixes}
    return names


def test_the_dashboard_asks_for_metrics_that_exist():
    board = json.loads((DEPLOY / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\b(?:vllm|orthrus):\w+", query)}
    assert len(queries) >= 12 and len(asked) >= 14
    assert asked <= series()
    assert all(query.count("(") == query.count(")") for query in queries)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def options_of(words):
    return {word for word in words if word.startswith("--")}


def test_containers_and_units_give_options_that_exist():
    app = typer.Typer()
    app.command()(command)
    known = {flag for parameter in typer.main.get_command(app).params for flag in parameter.opts}
    unit = (DEPLOY / "orthrus.service").read_text()
    started = shlex.split(re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)[1])
    assert started[1] == "serve" and {"--host", "--drain-timeout"} <= options_of(started) <= known
    drain = float(started[started.index("--drain-timeout") + 1])
    assert float(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[1]) > drain
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)[1])
    assert entry[:2] == ["orthrus", "serve"] and options_of(entry) <= known
