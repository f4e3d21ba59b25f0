"""Chat templates: Jinja programs of a checkpoint that turn messages into text, rendered as `transformers` renders them.

A template is untrusted, so it runs in Jinja's immutable sandbox and sees plain JSON values only. The names that it may
use beyond Jinja's own are those of `transformers.utils.chat_template_utils`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

REASONING = ("reasoning_content", "thinking", "reasoning")
"""The names under which messages carry their reasoning; templates read the first, some of them the second."""


def render(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """The text of a conversation. Raises whatever the template raises."""
    chat = [_message(plain_data(message)) for message in messages]
    return _compiled(template).render({"tools": None, "documents": None, **plain_data(variables), "messages": chat})


def plain_data(value: Any) -> Any:
    """A value rebuilt from plain JSON types: subclasses lose their methods, which the sandbox does not know, and other
    objects become the name of their type."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return int.__int__(value) if isinstance(value, int) else float.__float__(value)
    if isinstance(value, Mapping):
        return {plain_data(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain_data(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return _object_data(value)


def _object_data(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_data(getattr(value, field.name)) for field in fields(value)}
    if callable(getattr(value, "model_dump", None)):  # a pydantic model
        return plain_data(value.model_dump())
    if callable(getattr(value, "item", None)) and getattr(value, "shape", None) == ():  # a scalar of numpy
        return plain_data(value.item())
    return f"<{type(value).__name__}>"


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message without its empty keys, its reasoning under every name that templates read."""
    kept = {key: value for key, value in message.items() if value is not None}
    reasoning = next((kept[name] for name in REASONING if name in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}


class _GenerationTag(Extension):
    """`{% generation %}` marks the turns of the assistant for trainers; here its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012  the attribute that Jinja reads

    def parse(self, parser: Parser) -> CallBlock:
        """The tag as a call of `_body`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = CallBlock(self.call_method("_body"), [], [], body)
        block.set_lineno(line)
        return block

    @staticmethod
    def _body(caller: Macro) -> str:
        return caller()


class _Dict:
    """`dict` for templates, without the attributes of the class."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """See `dict.fromkeys`."""
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` for templates, which refuses names that could reach into the interpreter."""

    def __init__(*args: Any, **values: Any) -> None:
        self, given = args[0], dict(*args[1:], **values)
        for name in given:
            _refuse_private(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a template cannot store {name!r}: its name begins with an underscore")


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **others: Any) -> str:
    """Unlike Jinja's own filter, this one escapes no HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, **others)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    names: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace,
    }  # fmt: skip
    environment.globals.update(names)
    return environment.from_string(template)
