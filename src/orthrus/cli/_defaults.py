"""The sampling settings of `generate` and `chat`: what is given, over what the checkpoint samples with by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
NEUTRAL = {
    "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}  # fmt: skip
"""Values that change nothing."""


def starting_options(default: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an answer: those given over the checkpoint's `default_sampling`.

    A temperature that is given, 0 too, replaces all of the default except its penalty: `top_p` and the like belong to
    the temperature they were chosen with.
    """
    base = dict(default)
    if "temperature" in given:
        base = {name: value for name, value in base.items() if name == "repetition_penalty"}
    return {**base, **given}


def described(options: Mapping[str, Any]) -> str:
    """Settings in words, such as `greedy` or `temperature 0.6, top_k 20`. What changes nothing is left out."""
    greedy = not options.get("temperature")
    names = SHOWN[4:] if greedy else SHOWN
    parts = [
        f"{name} {options[name]:g}"
        for name in names
        if options.get(name) is not None and options[name] != NEUTRAL.get(name)
    ]
    return ", ".join(["greedy", *parts] if greedy else parts)
