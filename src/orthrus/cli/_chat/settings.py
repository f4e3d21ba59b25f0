"""The settings of a chat that `/set` changes, under the names of the options of `orthrus generate`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from orthrus.config import SamplingParams, StopConditions

INTEGERS = ("max_new_tokens", "min_new_tokens", "top_k", "seed")
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
NAMES = (*INTEGERS[:2], *NUMBERS[:1], INTEGERS[2], *NUMBERS[1:], INTEGERS[3], "stop")
ALIASES = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(SamplingParams)} | {
    "seed": "drawn for each answer",
    "stop": "none",
}
"""What holds for settings that are not given."""
UNSET = ("none", "default", "off")


def parse(name: str, text: str) -> tuple[str, Any]:
    """The setting and value of `/set NAME VALUE`; the value is None for `none`. Raises ValueError with the remedy."""
    name = ALIASES.get(name.replace("-", "_"), name.replace("-", "_"))
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        raise ValueError(
            f"no setting {name!r}; " + (f"did you mean {near[0]}?" if near else f"settings: {', '.join(NAMES)}")
        )
    if text.lower() in UNSET:
        return name, None
    if name == "stop":
        return name, [_text(text)]
    try:
        return name, int(text) if name in INTEGERS else float(text)
    except ValueError:
        kind = "an integer" if name in INTEGERS else "a number"
        raise ValueError(f"{name} needs {kind} or `none`, not {text!r}") from None


def check(options: Mapping[str, Any]) -> None:
    """Raise ValueError where a value is outside of its range."""
    sampling = {field.name for field in fields(SamplingParams)}
    SamplingParams(**{name: value for name, value in options.items() if name in sampling and name != "logit_bias"})
    StopConditions(options.get("max_new_tokens", 1), frozenset(), tuple(options.get("stop", ())))


def shown(options: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> list[str]:
    """A line for each setting, for `/set` without a name: its value, or what holds without one."""

    def line(name: str) -> str:
        if options.get(name) is not None:
            return _value(options[name])
        return "the server's default" if defaults is None else f"{defaults.get(name, 'none')} (default)"

    return [f"{name:<18} {line(name)}" for name in NAMES]


def changed(options: Mapping[str, Any], name: str) -> str:
    """One setting, after it has changed."""
    value = options.get(name)
    return f"{name} is not set now" if value is None else f"{name} {_value(value)}"


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text(text: str) -> str:
    """A stop string: as it is, or in double quotes as JSON, so that it can hold a line break."""
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        raise ValueError(f"{text} begins with a double quote, but is not a string of JSON") from None
