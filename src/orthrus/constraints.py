"""Options that constrain an answer as one `Constraint`: a schema, a regular expression, a grammar, or tool calls.

Tool calls are constrained to the format of Hermes and Qwen models, which `orthrus.tool_calls` reads. Where a call is
forced, the answer is nothing but calls. With the choice `auto` the text is free, but once `<tool_call>` has been
written, the name of a tool and arguments by its schema must follow. The tag is matched as text: a vocabulary may hold
it as one token or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from orthrus.config import Constraint

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
LENIENT = {"lenient": True, "whitespace_pattern": r" |\n {0,40}"}
"""Unlike a schema for the answer, the schema of a tool may hold keywords that cannot be enforced: they are ignored."""
NO_PARAMETERS = {"properties": {}, "additionalProperties": False}
"""What a tool without `parameters` takes, as in OpenAI's API."""

Tool = Mapping[str, Any]


def of_options(given: Mapping[str, Any]) -> Constraint | None:
    """The constraint that checked options ask for. Raises ValueError where they ask for two, or for an unknown tool."""
    texts: dict[Literal["json_object", "json_schema", "regex", "grammar"], Any] = {
        "json_object": "" if given.get("json_object") else None,
        "json_schema": given.get("json_schema"),
        "regex": given.get("regex"),
        "grammar": given.get("grammar"),
    }
    asked = {kind: text for kind, text in texts.items() if text is not None}
    tools, choice = given.get("tools", ()), given.get("tool_choice", "auto")
    if choice not in ("auto", "none") and not tools:
        raise ValueError(f"tool_choice {choice!r} needs tools")
    names = [tool["function"]["name"] for tool in tools]
    if choice not in ("auto", "none", "required") and choice not in names:
        raise ValueError(f"tool_choice {choice!r} is none of the tools: {', '.join(names)}")
    if len(asked) > 1 or (asked and choice not in ("auto", "none")):
        both = [*asked, *(["tool_choice"] if choice not in ("auto", "none") else [])]
        raise ValueError(f"{' and '.join(both)} exclude each other: an answer has one constraint")
    for kind, text in asked.items():
        return Constraint(kind, text)
    if not tools or choice == "none":
        return None
    return Constraint("grammar" if choice == "auto" else "tool_calls", tool_grammar(tools, choice))


def tool_grammar(tools: Sequence[Tool], choice: str) -> str:
    """A Lark grammar of an answer: free text and calls (`auto`), one call or more (`required`), or one call of the
    tool that is named."""
    called = [tool for tool in tools if choice in ("auto", "required", tool["function"]["name"])]
    calls = " | ".join(f"call_{number}" for number in range(len(called)))
    body = f'"\\n" ({calls}) "\\n</tool_call>"'
    start = {
        "auto": f'start: (tagged {body})* TEXT\ntagged[lazy]: TEXT "<tool_call>"\nTEXT: /(.|\\n)*/',
        "required": f'start: call ("\\n" call)*\ncall: "<tool_call>" {body}',
    }.get(choice, f'start: "<tool_call>" {body}')
    return "\n".join(["%llguidance {}", start, *(_call(number, tool) for number, tool in enumerate(called))])


def _call(number: int, tool: Tool) -> str:
    function = tool["function"]
    head = json.dumps(f'{{"name": "{function["name"]}", "arguments": ')
    schema = {"type": "object", **(function.get("parameters") or NO_PARAMETERS), "x-guidance": LENIENT}
    return f'call_{number}: {head} arguments_{number} "}}"\narguments_{number}: %json {json.dumps(schema)}'


def checked_tools(name: str, value: object) -> tuple[dict[str, Any], ...]:
    """Tools in OpenAI's format. Raises ValueError where one of them is not."""
    expected = '{"type": "function", "function": {"name": ..., "parameters": {...}}}'
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"{name} must be a list of tools like {expected}")  # noqa: TRY004
    tools = []
    for number, tool in enumerate(value, 1):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
            raise ValueError(f"{name}: tool {number} must be like {expected}")
        if not isinstance(function.get("name"), str) or not NAME.fullmatch(function["name"]):
            raise ValueError(f"{name}: the name of tool {number} must be 1 to 64 letters, digits, '_', '.' or '-'")
        parameters = function.get("parameters")
        if parameters is not None and not isinstance(parameters, Mapping):
            raise ValueError(f"{name}: the parameters of {function['name']} must be a JSON schema")
        tools.append({"type": "function", **tool, "function": dict(function)})
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise ValueError(f"{name}: two tools have the same name")
    return tuple(tools)


def checked_choice(name: str, value: object) -> str:
    """`auto`, `none`, `required`, or the name of a tool, also in OpenAI's form of an object."""
    if isinstance(value, Mapping):
        function = value.get("function")
        value = function.get("name") if isinstance(function, Mapping) else value.get("name")
    if not isinstance(value, str):
        raise ValueError(  # noqa: TRY004
            f'{name} must be "auto", "none", "required", the name of a tool, or'
            ' {"type": "function", "function": {"name": ...}}'
        )
    return value


def checked_schema(name: str, value: object) -> str:
    """A JSON schema, given as a mapping, a boolean, JSON text or a class of pydantic, as JSON text."""
    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        try:
            value = value.model_json_schema()
        except Exception as error:  # pydantic has an error of its own for each type without a schema
            raise ValueError(f"{name}: {value!r} has no JSON schema: {error}") from error
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} is no JSON: {error}") from error
    if not isinstance(value, Mapping | bool):
        raise ValueError(f"{name} must be a JSON schema: a mapping, JSON text, or a class of pydantic")  # noqa: TRY004
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be written as JSON: {error}") from error
