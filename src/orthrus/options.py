"""The options of `generate`, `stream` and `results`: what there is, of which type, and the records made of them."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, TypedDict

from orthrus.config import DecodingConfig, SamplingParams, StopConditions
from orthrus.decoding import cycles, rules


class Options(TypedDict, total=False):
    """All that `generate` and `stream` take besides the prompt; see `SamplingParams` and `StopConditions`.

    None stands for the default of an option.
    """

    max_new_tokens: int | None
    stop: str | Seq[str] | None
    stop_token_ids: Seq[int] | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    min_new_tokens: int | None
    seed: int | None
    sample_index: int | None
    cycle: str | None
    rule: str | None
    width: int | None
    candidates: int | None
    batch_size: int | None
    raw: bool | None
    system: str | None
    chat_template_kwargs: Mapping[str, Any] | None


@dataclass(frozen=True)
class Settings:
    """Options as the rooms behind want them, checked in all that can be told without a model."""

    sampling: SamplingParams
    stop: StopConditions
    decoding: DecodingConfig
    raw: bool = False
    system: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(options: Mapping[str, Any], *, cycle: str = DecodingConfig.cycle) -> Settings:
        """Check options. `cycle` runs where they name none. Raises ValueError naming the option that is wrong."""
        given = _checked(options)
        decoding = DecodingConfig(**{"cycle": cycle, **_part(given, DecodingConfig)})
        cycles.load(decoding.cycle)
        rules.load(decoding.rule)
        stop = StopConditions(
            given.get("max_new_tokens", StopConditions.max_new_tokens),
            frozenset(given.get("stop_token_ids", ())),
            given.get("stop", ()),
        )
        raw, system, template = given.get("raw", False), given.get("system"), given.get("chat_template_kwargs", {})
        if raw and (system is not None or template):
            wrong = "system" if system is not None else "chat_template_kwargs"
            raise ValueError(f"raw leaves the chat template out, so there is no place for {wrong}: drop one of them")
        return Settings(SamplingParams(**_part(given, SamplingParams)), stop, decoding, raw, system, template)


def whole(value: Any) -> int | None:
    """An integer of Python, numpy or torch as a plain one; None for all else, truth values and floats included."""
    if type(value) is int:
        return value
    kind = str(getattr(value, "dtype", type(value).__name__))
    if "bool" in kind or getattr(value, "shape", ()) != ():
        return None
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):  # torch raises the latter, or the former, for a float
        return None


def whole_numbers(values: Any) -> list[int] | None:
    """The same for a list, tuple or set of them, or a one-dimensional array; None where one is none."""
    if not isinstance(values, list | tuple | set | frozenset) and len(getattr(values, "shape", ())) != 1:
        return None
    found = [whole(value) for value in (values if isinstance(values, Iterable) else ())]
    return [number for number in found if number is not None] if None not in found else None


def check_type(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raises ValueError where a value is of none of the kinds."""
    if not isinstance(value, kinds):
        raise wrong(name, value, expected)


def wrong(name: str, value: object, expected: str) -> ValueError:
    """The error that says which option it is about, what it must be, and what was given."""
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return ValueError(f"{name} must be {expected}, not {shown} ({type(value).__name__})")


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as plain values of their types."""
    for name in options:
        if name not in KINDS:
            near = difflib.get_close_matches(str(name), KINDS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"options: {', '.join(KINDS)}"
            raise ValueError(f"unknown option {name!r}; {hint}")
    return {name: KINDS[name](name, value) for name, value in options.items() if value is not None}


def _part(given: Mapping[str, Any], record: type[SamplingParams] | type[DecodingConfig]) -> dict[str, Any]:
    return {f.name: given[f.name] for f in fields(record) if f.name in given}


def _integer(name: str, value: object) -> int:
    number = whole(value)
    if number is None:
        raise wrong(name, value, "a whole number")
    return number


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise wrong(name, value, "a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is beyond the numbers of a float") from None


def _truth(name: str, value: object) -> bool:
    check_type(name, value, bool, "True or False")
    return bool(value)


def _string(name: str, value: object) -> str:
    check_type(name, value, str, "a string")
    return str(value)


def _strings(name: str, value: object) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, list | tuple | set | frozenset) or not all(isinstance(text, str) for text in found):
        raise wrong(name, value, "a string or a list of strings")
    return tuple(sorted(found) if isinstance(found, set | frozenset) else found)


def _token_ids(name: str, value: object) -> list[int]:
    found = whole_numbers(value)
    if found is None:
        raise wrong(name, value, "a list of token ids")
    return found


def _bias(name: str, value: object) -> tuple[tuple[int, float], ...]:
    expected = "a mapping of token ids to numbers"
    if not isinstance(value, Mapping):
        raise wrong(name, value, expected)
    found = {}
    for key, bias in value.items():
        token = whole(key)
        if token is None or isinstance(bias, bool) or not isinstance(bias, Real):
            raise wrong(name, {key: bias}, expected)
        found[token] = _number(name, bias)
    return tuple(sorted(found.items()))


def _template(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise wrong(name, value, "a mapping of names to values")
    taken = [key for key in value if key in RESERVED]
    if taken:
        raise ValueError(
            f"{name} may not hold {', '.join(map(repr, taken))}: that is set here, or no variable of a chat template"
        )
    return dict(value)


KINDS: dict[str, Callable[[str, Any], Any]] = {
    "max_new_tokens": _integer, "stop": _strings, "stop_token_ids": _token_ids, "temperature": _number,
    "top_k": _integer, "top_p": _number, "min_p": _number, "repetition_penalty": _number,
    "presence_penalty": _number, "frequency_penalty": _number, "logit_bias": _bias, "min_new_tokens": _integer,
    "seed": _integer, "sample_index": _integer, "cycle": _string, "rule": _string, "width": _integer,
    "candidates": _integer, "batch_size": _integer, "raw": _truth, "system": _string,
    "chat_template_kwargs": _template,
}  # fmt: skip
"""What makes a plain value of each option, or raises ValueError."""

RESERVED = frozenset(
    (
        "self", "conversation", "conversations", "messages", "tools", "documents", "chat_template",
        "add_generation_prompt", "continue_final_message", "tokenize", "sanitize_control_tokens", "padding",
        "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
    )
)  # fmt: skip
"""Arguments of `apply_chat_template` and of what it calls: none of them is a variable of the template."""
