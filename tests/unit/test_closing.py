"""A model gives its memory back when it is closed, and says so when it is asked for more."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import tiny

import orthrus

MEASURE = """
import json
import sys

import orthrus


def megabytes():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024


def used():
    with orthrus.load(sys.argv[1], dtype="float32") as model:
        model.generate([5, 6, 7], max_new_tokens=3, cycle="two-pass")
        return megabytes()


used()  # imports all that is needed, and leaves packed weights, which the next one maps
before = megabytes()
print(json.dumps([before, used(), megabytes()]))
"""


@pytest.fixture
def model(tmp_path):
    return orthrus.load(str(tiny.save_checkpoint(tmp_path / "model")), dtype="float32")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_closed_model_returns_its_memory(tmp_path):
    path = tiny.save_checkpoint(tmp_path / "model", hidden_size=256, intermediate_size=1024, num_hidden_layers=16)
    command, cache = [sys.executable, "-c", MEASURE, str(path)], {"ORTHRUS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | cache)
    before, during, after = json.loads(done.stdout)
    assert during - before > 50, (before, during, after)
    assert after - before < 15, (before, during, after)


def test_a_closed_model_refuses_to_go_on(model):
    with model as same:
        assert same is model
        result = model.generate("hi", max_new_tokens=3)
    assert len(result.tokens) == 3
    assert repr(model) == "<orthrus.Model, closed>"
    for use in (lambda: model.generate("hi"), lambda: model.stream("hi"), lambda: model.tokenizer, model.engine):
        with pytest.raises(ValueError, match=r"this model is closed: load it again with orthrus\.load"):
            use()
    model.close()


def test_a_stream_of_a_closed_model_ends_as_it_would_have(model):
    expected = model.generate("hi", max_new_tokens=9).tokens
    stream = model.stream("hi", max_new_tokens=9)
    model.close()
    *_, last = stream
    assert last.result.tokens == expected


def test_an_open_model_lacks_what_it_lacks(model):
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        _ = model.generat
    assert not hasattr(model, "_repr_html_")
