"""`/infill` as llama.cpp's server has it: the gap at a cursor, where its answer ends early, and the fields it shows."""

from __future__ import annotations

import json
import time

import in_loop
import pytest

from orthrus.serving.infill import EarlyEnd
from orthrus.serving.protocol.infill import InfillRequest
from orthrus.serving.settings import ServeSettings

PREFIX, PROMPT, SUFFIX = "def add(a, b):\n", "    return ", "\n\nprint(add(1, 2))\n"
GAP = {"input_prefix": PREFIX, "prompt": PROMPT, "input_suffix": SUFFIX}


@pytest.fixture(scope="module")
def server(coder):
    transport = in_loop.InLoop(coder, ServeSettings(served_model_name="tiny", cycle="one-pass", infill_tokens=300))
    yield transport
    transport.end()


def test_the_answer_is_what_the_model_fills_in(server, coder):
    given = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 5, "n_predict": 12, "repeat_penalty": 1.1}
    alone = coder.generate(
        PREFIX + PROMPT, suffix=SUFFIX, temperature=0.9, top_k=40, top_p=0.9, seed=5, max_new_tokens=12,
        repetition_penalty=1.1, cycle="ar",
    )  # fmt: skip
    whole = server.http.post("/infill", json={**GAP, **given}).json()
    assert (whole["content"], whole["stop"], whole["stop_type"]) == (alone.text, True, "limit")
    assert (whole["tokens_evaluated"], whole["tokens_predicted"]) == (alone.prompt_tokens, 12)
    times = whole["timings"]
    assert times["cache_n"] + times["prompt_n"] == alone.prompt_tokens and times["predicted_n"] == 12
    assert not whole["truncated"]
    streamed = server.http.post("/infill", json={**GAP, **given, "stream": True}).text
    events = [json.loads(event.removeprefix("data: ")) for event in streamed.strip().split("\n\n")]
    assert "".join(event["content"] for event in events) == alone.text
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["tokens_predicted"] == 12


def test_other_files_stand_before_it_and_the_oldest_go_first_where_there_is_no_room(server, coder):
    files = [(f"file{n}.py", f"value = {n}\n" * 40) for n in range(6)]
    extra = [{"text": text, "filename": name, "time": [1, 2]} for name, text in files]
    fim = coder.fill_in_middle
    for kept in (2, 6):
        answer = server.http.post("/infill", json={**GAP, "input_extra": extra[-kept:], "n_predict": 4}).json()
        fitting = files[-kept:] if kept == 2 else files[-4:]
        prompt = fim.prompt(PREFIX + PROMPT, SUFFIX, files=fitting)
        assert answer["tokens_evaluated"] == len(prompt)
        assert answer["content"] == coder.generate(list(prompt), max_new_tokens=4).text
        assert answer["truncated"] == (kept == 6)


def test_long_texts_are_cut(server, coder):
    before = "".join(f"value_{n} = {n}\n" for n in range(400))
    answer = server.http.post("/infill", json={"input_prefix": before, "input_suffix": before, "n_predict": 1}).json()
    cut = coder.fill_in_middle.window(before, before, 300)
    assert answer["truncated"] and answer["tokens_evaluated"] == len(coder.request(cut[0], {"suffix": cut[1]}).prompt)


def test_without_tokens_the_prompt_is_read_into_the_cache(server):
    """As llama.vim does in the background when it has other text to show."""
    warm = {**GAP, "input_prefix": "x = 1\n" * 40, "n_predict": 0, "response_fields": [""], "samplers": []}
    assert server.http.post("/infill", json=warm).json() == {}
    asked = {**warm, "n_predict": 2, "response_fields": ["content", "timings/prompt_n", "timings/nothing", "other"]}
    answer = server.http.post("/infill", json=asked).json()
    assert set(answer) == {"content", "timings/prompt_n"} and answer["timings/prompt_n"] == 1


def ended(text, steps=1, **fields):
    """What is kept of a text that comes in so many characters at a time."""
    end, kept = EarlyEnd(InfillRequest(input_prefix="", input_suffix="", **fields)), ""
    for at in range(0, len(text), steps):
        if end.reached:
            break
        kept += end.take(text[at : at + steps])
    return kept + end.rest()


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_an_answer_ends_before_a_line_that_is_indented_less(steps):
    deep = "x\n    y\n\n      z\n  }\n    w\n"
    assert ended(deep, steps, n_indent=4) == "x\n    y\n\n      z"
    assert ended("x\n", steps, n_indent=4) == "x\n", "what ends by itself is whole"
    assert ended(deep, steps, n_indent=0) == ended(deep, steps) == deep


def test_an_answer_ends_when_its_time_is_up_and_it_has_a_line(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("orthrus.serving.infill.perf_counter", lambda: next(clock))
    assert ended("ab\ncd\nef\n", t_max_predict_ms=1) == "ab\n"
    assert ended("abcd", t_max_predict_ms=1) == "abcd"
    assert ended("ab\ncd", t_max_predict_ms=10**6) == ended("ab\ncd") == "ab\ncd"


def test_no_further_pass_is_made_for_an_answer_that_has_ended(server):
    asked = {**GAP, "n_predict": 400, "n_indent": 4, "temperature": 2.0}
    answers = (server.http.post("/infill", json={**asked, "seed": seed}).json() for seed in range(20))
    answer = next(answer for answer in answers if answer["stop_type"] == "limit")
    lines = answer["content"].split("\n")[1:]
    assert all(len(line) - len(line.lstrip(" \t")) >= min(4, len(line)) for line in lines)
    assert answer["tokens_predicted"] < 400, "the model had not ended it"
    while server.service.engine.unfinished:
        time.sleep(0.005)
    assert server.service.unfinished == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input_prefix": "a"}, "input_suffix"), ({**GAP, "model": "other"}, "model"),
        ({**GAP, "n_probs": 1}, "n_probs"),
        ({**GAP, "cache_prompt": False}, "cache_prompt"), ({**GAP, "samplers": ["mirostat"]}, "samplers[0]"),
        ({**GAP, "input_extra": [{"filename": "a"}]}, "input_extra[0].text"), ({**GAP, "grammar": "root"}, "grammar"),
    ],
)  # fmt: skip
def test_other_fields_are_refused_by_name(server, body, param):
    response = server.http.post("/infill", json=body)
    assert response.status_code in (400, 404) and response.json()["error"]["param"] == param, response.text


def test_a_model_without_the_tokens_says_so(model):
    transport = in_loop.InLoop(model, ServeSettings(cycle="one-pass"))
    try:
        response = transport.http.post("/infill", json=GAP)
        assert response.status_code == 400 and "fill in the middle" in response.json()["error"]["message"]
    finally:
        transport.end()


def test_a_window_has_seven_eighths_before_the_gap(coder):
    text = "".join(f"line {n}\n" for n in range(300))
    before, after = coder.fill_in_middle.window(text, text, 800)
    assert 525 <= len(coder.encode(before)) <= 700 and 85 <= len(coder.encode(after)) <= 100
