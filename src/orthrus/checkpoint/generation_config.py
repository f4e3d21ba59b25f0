"""How the authors of a checkpoint would sample from it: `generation_config.json`, or the sampling keys of GGUF.

The commands `generate`, `chat` and `serve` start from these values, under every option that is given.
`Model.generate` does not: it is greedy by default.
"""

from __future__ import annotations

from typing import Any

from orthrus.checkpoint.sources import Source
from orthrus.checkpoint.validation import Field, read_json

FIELDS = {
    "temperature": Field(float, 0, 100),
    "top_k": Field(int, 0, 2**24),
    "top_p": Field(float, 1e-6, 1),
    "min_p": Field(float, 0, 1),
    "repetition_penalty": Field(float, 0.01, 100),
}
"""The fields that are read, under the names of our options."""
GGUF_KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


def sampling_options(source: Source) -> dict[str, Any]:
    """The sampling options that a checkpoint recommends, by name; none where it says nothing.

    In `generation_config.json`, `do_sample: false` stands for greedy decoding, and `true` without a temperature for a
    temperature of 1, as in transformers. A field with an impossible value counts as absent: it is only advice.
    """
    if source.gguf:
        return _valid({name: source.header.fields.get(key) for key, name in GGUF_KEYS.items()})
    path = source.path / "generation_config.json"
    content = read_json(path) if path.exists() else {}
    if content.get("do_sample") is False:
        content = {"repetition_penalty": content.get("repetition_penalty"), "temperature": 0.0}
    found = _valid(content)
    return {"temperature": 1.0, **found} if content.get("do_sample") is True else found


def default_sampling(recommended: dict[str, Any]) -> dict[str, Any]:
    """What is sampled with where the user says nothing: what is recommended, greedy where it names no temperature."""
    return {"temperature": 0.0, **recommended}


def _valid(content: dict[str, Any]) -> dict[str, Any]:
    given = {name: content[name] for name in FIELDS if content.get(name) is not None}
    return {name: value for name, value in given.items() if FIELDS[name].accepts(value)}
