"""The options of `generate`, `stream` and `results`: names, types, and the config records built from them."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any, TypedDict

from orthrus import constraints
from orthrus.config import DecodingConfig, LogitsProcessor, SamplingParams, StopConditions
from orthrus.decoding import cycles, rules
from orthrus.decoding.sequence import check_length


class Options(TypedDict, total=False):
    """The options of `generate` and `stream`; see `SamplingParams`, `StopConditions` and `DecodingConfig`.

    None means the default of an option.
    """

    max_new_tokens: int | None
    max_tokens: int | None
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
    tree_nodes: int | None
    batch_size: int | None
    raw: bool | None
    suffix: str | None
    system: str | None
    chat_template_kwargs: Mapping[str, Any] | None
    json_object: bool | None
    json_schema: Mapping[str, Any] | str | type | None
    regex: str | None
    grammar: str | None
    tools: Seq[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    logprobs: int | None
    prompt_logprobs: int | None
    logits_processors: Seq[LogitsProcessor] | LogitsProcessor | None


@dataclass(frozen=True)
class Settings:
    """Options as config records; everything that can be checked without a model has been checked."""

    sampling: SamplingParams
    stop: StopConditions
    decoding: DecodingConfig
    raw: bool = False
    suffix: str | None = None
    system: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()

    @staticmethod
    def of(
        options: Mapping[str, Any],
        *,
        cycle: str = DecodingConfig.cycle,
        sampling_params: SamplingParams | None = None,
    ) -> Settings:
        """Check options; `cycle` is the default of the option, and `sampling_params` are those of the options that it
        holds. Raises ValueError naming the option that is wrong."""
        given = _checked(options)
        params = SamplingParams() if sampling_params is None else sampling_params
        check_type("sampling_params", params, SamplingParams, "an orthrus.SamplingParams")
        decoding = DecodingConfig(**{"cycle": cycle, **_part(given, DecodingConfig)})
        cycles.load(decoding.cycle)
        rules.load(decoding.rule)
        stop = StopConditions(
            given.get("max_new_tokens", StopConditions.max_new_tokens),
            frozenset(given.get("stop_token_ids", ())),
            given.get("stop", ()),
        )
        raw, system, template = given.get("raw", False), given.get("system"), given.get("chat_template_kwargs", {})
        tools = given.get("tools", ()) if given.get("tool_choice") != "none" else ()
        if raw and (system is not None or template or tools):
            conflicting = "system" if system is not None else "chat_template_kwargs" if template else "tools"
            raise ValueError(
                f"raw leaves the chat template out, so there is no place for {conflicting}: drop one of them"
            )
        suffix = given.get("suffix")
        if suffix is not None and (system is not None or template or tools):
            conflicting = "system" if system is not None else "chat_template_kwargs" if template else "tools"
            raise ValueError(
                f"suffix leaves the chat template out, so there is no place for {conflicting}: drop one of them"
            )
        constraint = constraints.of_options(given) or params.constraint
        sampling = replace(params, **_part(given, SamplingParams), constraint=constraint)
        check_length(sampling, stop)
        return Settings(sampling, stop, decoding, raw, suffix, system, template, tools)


def as_integer(value: Any) -> int | None:
    """An integer of Python, numpy or torch as an int; None for all other values, booleans and floats included."""
    if type(value) is int:
        return value
    kind = str(getattr(value, "dtype", type(value).__name__))
    if "bool" in kind or getattr(value, "shape", ()) != ():
        return None
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):  # torch raises either for a float
        return None


def as_integers(values: Any) -> list[int] | None:
    """A list, tuple, set or one-dimensional array of integers as ints; None for all other values."""
    if not isinstance(values, list | tuple | set | frozenset) and len(getattr(values, "shape", ())) != 1:
        return None
    integers = [as_integer(value) for value in (values if isinstance(values, Iterable) else ())]
    return [number for number in integers if number is not None] if None not in integers else None


def check_type(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raise ValueError where a value is not an instance of `kinds`."""
    if not isinstance(value, kinds):
        raise wrong(name, value, expected)


def wrong(name: str, value: object, expected: str) -> ValueError:
    """The error of an option with a wrong value: its name, what was expected, and the value."""
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return ValueError(f"{name} must be {expected}, not {shown} ({type(value).__name__})")


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not None, as plain values of their types."""
    for name in options:
        if name not in KINDS:
            near = difflib.get_close_matches(str(name), KINDS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"options: {', '.join(KINDS)}"
            hint = "it is an argument of generate and results" if name in ARGUMENTS else hint
            raise ValueError(f"unknown option {name!r}; {hint}")
    given = {name: KINDS[name](name, value) for name, value in options.items() if value is not None}
    if "max_tokens" in given:
        if "max_new_tokens" in given:
            raise ValueError("max_tokens and max_new_tokens are one option: give one of them")
        given["max_new_tokens"] = given.pop("max_tokens")
    return given


def _part(given: Mapping[str, Any], record: type[SamplingParams] | type[DecodingConfig]) -> dict[str, Any]:
    return {f.name: given[f.name] for f in fields(record) if f.name in given}


def _integer(name: str, value: object) -> int:
    number = as_integer(value)
    if number is None:
        raise wrong(name, value, "an integer")
    return number


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise wrong(name, value, "a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a float") from None


def _boolean(name: str, value: object) -> bool:
    check_type(name, value, bool, "True or False")
    return bool(value)


def _string(name: str, value: object) -> str:
    check_type(name, value, str, "a string")
    return str(value)


def _strings(name: str, value: object) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple | set | frozenset) or not all(isinstance(text, str) for text in texts):
        raise wrong(name, value, "a string or a list of strings")
    return tuple(sorted(texts) if isinstance(texts, set | frozenset) else texts)


def _functions(name: str, value: object) -> tuple[LogitsProcessor, ...]:
    functions = (value,) if callable(value) else value
    if not isinstance(functions, list | tuple) or not all(callable(function) for function in functions):
        raise wrong(name, value, "a list of functions of the tokens before a row and its scores")
    return tuple(functions)


def _token_ids(name: str, value: object) -> list[int]:
    token_ids = as_integers(value)
    if token_ids is None:
        raise wrong(name, value, "a list of token ids")
    return token_ids


def _bias(name: str, value: object) -> tuple[tuple[int, float], ...]:
    expected = "a mapping of token ids to numbers"
    if not isinstance(value, Mapping):
        raise wrong(name, value, expected)
    biases = {}
    for key, bias in value.items():
        token = as_integer(key)
        if token is None or isinstance(bias, bool) or not isinstance(bias, Real):
            raise wrong(name, {key: bias}, expected)
        biases[token] = _number(name, bias)
    return tuple(sorted(biases.items()))


def _template(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise wrong(name, value, "a mapping of names to values")
    reserved = [key for key in value if key in RESERVED]
    if reserved:
        raise ValueError(
            f"{name} may not hold {', '.join(map(repr, reserved))}: reserved arguments, not variables of the template"
        )
    return dict(value)


KINDS: dict[str, Callable[[str, Any], Any]] = {
    "max_new_tokens": _integer, "stop": _strings, "stop_token_ids": _token_ids, "temperature": _number,
    "top_k": _integer, "top_p": _number, "min_p": _number, "repetition_penalty": _number,
    "presence_penalty": _number, "frequency_penalty": _number, "logit_bias": _bias, "min_new_tokens": _integer,
    "seed": _integer, "sample_index": _integer, "cycle": _string, "rule": _string, "width": _integer,
    "candidates": _integer, "tree_nodes": _integer, "batch_size": _integer, "raw": _boolean, "suffix": _string,
    "system": _string, "chat_template_kwargs": _template, "json_object": _boolean,
    "json_schema": constraints.checked_schema,
    "regex": _string, "grammar": _string, "tools": constraints.checked_tools,
    "tool_choice": constraints.checked_choice, "logprobs": _integer, "prompt_logprobs": _integer,
    "max_tokens": _integer, "logits_processors": _functions,
}  # fmt: skip
"""The function that converts each option to a plain value, or raises ValueError."""

ARGUMENTS = ("n", "progress", "sampling_params")
"""Arguments of `generate` and `results`, and of no engine."""

RESERVED = frozenset(
    (
        "self", "conversation", "conversations", "messages", "tools", "documents", "chat_template",
        "add_generation_prompt", "continue_final_message", "tokenize", "sanitize_control_tokens", "padding",
        "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
    )
)  # fmt: skip
"""Arguments of `apply_chat_template` and of the functions it calls; they cannot be variables of a template."""
