"""Filling in the middle over HTTP: `suffix` of `/v1/completions`."""

from __future__ import annotations

import json

import in_loop
import openai
import pytest
import tiny

from orthrus.serving.settings import ServeSettings

BEFORE, AFTER = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n"
ENDS = range(tiny.END - 6, tiny.END)


@pytest.fixture(scope="module")
def server(coder):
    transport = in_loop.InLoop(coder, ServeSettings(served_model_name="tiny", cycle="one-pass"))
    yield transport
    transport.end()


@pytest.mark.parametrize("sampled", [{"temperature": 0}, {"temperature": 0.9, "seed": 4, "n": 2}])
def test_the_answer_is_what_the_model_fills_in(server, coder, sampled):
    given = {"model": "tiny", "prompt": BEFORE, "suffix": AFTER, "max_tokens": 12, **sampled}
    options = {"temperature": sampled["temperature"], "seed": sampled.get("seed"), "cycle": "ar"}
    alone = [
        coder.generate(BEFORE, suffix=AFTER, max_new_tokens=12, sample_index=index, **options)
        for index in range(sampled.get("n", 1))
    ]
    answer = server.client.completions.create(**given)
    assert [choice.text for choice in answer.choices] == [one.text for one in alone]
    assert answer.usage.prompt_tokens == alone[0].prompt_tokens == len((BEFORE + AFTER).encode()) + 3
    texts = ["" for _ in alone]
    for chunk in server.client.completions.create(**given, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [one.text for one in alone]


@pytest.mark.parametrize("token", [ENDS[0], ENDS[3], ENDS[5]])
def test_it_ends_with_the_tokens_of_the_family(server, token):
    written = f"<|fim_prefix|>{BEFORE}<|fim_suffix|>{AFTER}<|fim_middle|>"
    for prompt in ({"prompt": BEFORE, "suffix": AFTER}, {"prompt": written}):
        for stream in (False, True):
            forced = {"logit_bias": {str(token): 100}, "max_tokens": 4, "stream": stream, "temperature": 0}
            response = server.http.post("/v1/completions", json={**prompt, **forced})
            lines = response.text.removeprefix("data: ").split("\n\n")
            choice = json.loads(lines[0])["choices"][0]
            assert (choice["text"], choice["finish_reason"]) == ("", "stop")


@pytest.mark.parametrize(
    ("body", "param", "problem"),
    [
        ({"prompt": BEFORE, "echo": True}, "echo", "does not go with suffix"),
        ({"prompt": [1, 2]}, "suffix", "needs a prompt that is a text"),
        ({"prompt": BEFORE * 100}, "prompt", "leaves no room for an answer"),
        ({"prompt": BEFORE, "suffix": AFTER * 10000}, "prompt", "characters"),
    ],
)
def test_what_does_not_go_together_is_named(server, body, param, problem):
    response = server.http.post("/v1/completions", json={"suffix": AFTER, **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param) and problem in error["message"]


def test_a_model_without_the_tokens_says_so(model):
    transport = in_loop.InLoop(model, ServeSettings(served_model_name="tiny", cycle="one-pass"))
    try:
        with pytest.raises(openai.BadRequestError, match="has no tokens for that in its vocabulary") as error:
            transport.client.completions.create(model="tiny", prompt=BEFORE, suffix=AFTER)
        assert error.value.param == "suffix"
        plain = transport.client.completions.create(model="tiny", prompt=BEFORE, suffix="", max_tokens=4)
        assert plain.usage.completion_tokens == 4, "an empty one asks for nothing"
    finally:
        transport.end()
