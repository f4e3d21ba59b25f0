"""Varied JSON schemas, made from a seed, and a check of values against them.

Every text that a schema allows is bounded but for the digits of a fraction, which constraints bound: strings have a
maximum length, a pattern or a format, arrays a maximum number of items, objects no other properties.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

NAMES = (
    "name", "title", "city", "country", "colour", "size", "price", "count", "tags", "owner", "address", "email",
    "notes", "status", "kind", "rating", "created", "items", "parent", "code",
)  # fmt: skip
PATTERNS = (r"^[A-Z]{2}-[0-9]{4}$", r"^#[0-9a-f]{6}$", r"^(north|south|east|west)-[a-z]{3,8}$", r"^v[0-9]{1,2}\.[0-9]$")
FORMATS = {
    "date": r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": r"((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(\.(?!$)|$)){4}",
}
TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
    "null": type(None),
}  # fmt: skip


def generate(seed: int) -> Schema:
    """The schema of a seed: an object with nested objects, arrays, enums, strings, numbers, alternatives, references
    and optional properties."""
    rng = random.Random(seed)
    definitions: dict[str, Schema] = {}
    if rng.random() < 0.4:
        definitions["part"] = _object(rng, 2, definitions)
    made = _object(rng, 0, definitions)
    return {**made, "$defs": definitions} if definitions else made


def violations(schema: Schema, value: Any, root: Schema | None = None, path: str = "$") -> Iterator[str]:
    """What a value breaks of a schema of `generate`, one line each."""
    root = root or schema
    if "$ref" in schema:
        yield from violations(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root, path)
        return
    if "anyOf" in schema:
        if all(any(violations(option, value, root, path)) for option in schema["anyOf"]):
            yield f"{path} matches no alternative"
        return
    if "enum" in schema:
        if not any(value == one and type(value) is type(one) for one in schema["enum"]):
            yield f"{path} is not in the enum"
        return
    kind = schema["type"]
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        yield f"{path} is no {kind}"
    elif kind == "object":
        yield from _of_object(schema, value, root, path)
    elif kind == "array":
        if not schema.get("minItems", 0) <= len(value) <= schema["maxItems"]:
            yield f"{path} has {len(value)} items"
        for number, item in enumerate(value):
            yield from violations(schema["items"], item, root, f"{path}[{number}]")
    elif kind == "string":
        yield from _of_string(schema, value, path)
    elif kind in ("integer", "number") and not schema["minimum"] <= value <= schema["maximum"]:
        yield f"{path} is out of range"


def _of_object(schema: Schema, value: dict[str, Any], root: Schema, path: str) -> Iterator[str]:
    for name in schema["required"]:
        if name not in value:
            yield f"{path} lacks {name}"
    for name, item in value.items():
        if name not in schema["properties"]:
            yield f"{path} has {name}"
        else:
            yield from violations(schema["properties"][name], item, root, f"{path}.{name}")


def _of_string(schema: Schema, value: str, path: str) -> Iterator[str]:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield f"{path} has {len(value)} characters"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path} does not match the pattern"
    if "format" in schema and not re.fullmatch(FORMATS[schema["format"]], value):
        yield f"{path} is no {schema['format']}"


def _object(rng: random.Random, depth: int, definitions: dict[str, Schema]) -> Schema:
    names = rng.sample(NAMES, rng.randint(2, 5 - depth))
    properties = {name: _any(rng, depth + 1, definitions) for name in names}
    required = [name for name in names if rng.random() < 0.7] or names[:1]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _any(rng: random.Random, depth: int, definitions: dict[str, Schema]) -> Schema:
    nested = ["object", "array", "anyOf", *(["$ref"] * bool(definitions))] if depth < 3 else []
    kind = rng.choice(["string", "string", "pattern", "format", "integer", "number", "boolean", "enum", *nested])
    low = rng.randint(-100, 100)
    if kind == "object":
        return _object(rng, depth, definitions)
    if kind == "array":
        few = rng.randint(0, 2)
        return {"type": "array", "items": _any(rng, depth + 1, definitions), "minItems": few, "maxItems": few + 2}
    if kind == "anyOf":
        return {"anyOf": [{"type": "null"}, _any(rng, 3, definitions)]}
    leaves: dict[str, Schema] = {
        "$ref": {"$ref": "#/$defs/part"},
        "string": {"type": "string", "minLength": rng.randint(0, 3), "maxLength": rng.randint(4, 24)},
        "pattern": {"type": "string", "pattern": rng.choice(PATTERNS)},
        "format": {"type": "string", "format": rng.choice(list(FORMATS))},
        "integer": {"type": "integer", "minimum": low, "maximum": low + rng.randint(1, 1000)},
        "number": {"type": "number", "minimum": low, "maximum": low + rng.randint(1, 1000)},
        "boolean": {"type": "boolean"},
        "enum": {"enum": rng.choice([["small", "medium", "large"], [1, 2, 3], ["a", None, True, 0]])},
    }
    return leaves[kind]
