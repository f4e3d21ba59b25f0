"""Fields by which other servers ask for constrained text, and what takes their place here."""

from __future__ import annotations

_SCHEMA = '{"type": "json_schema", "json_schema": {"name": "...", "schema": {...}}}'
_OBJECT = '{"type": "json_object"}'
_REGEX = '{"type": "regex", "regex": "..."}'
_CHOICE = '{"type": "regex", "regex": "yes|no"}'
_GRAMMAR = '{"type": "grammar", "grammar": "..."}'


def _format(example: str, note: str = "") -> str:
    return f'use "response_format": {example}{note}'


_RESPONSES = '; in /v1/responses "text": {"format": {"type": "json_schema", "name": "...", "schema": {...}}}'
_LARK = ", a Lark grammar"
_ANY = f"{_SCHEMA}, {_REGEX}, or {_GRAMMAR}{_LARK}"
_NONE = "leave it out; one implementation constrains all answers"

OTHER_NAMES = {
    # vLLM
    "guided_json": _format(_SCHEMA, _RESPONSES),
    "guided_json_object": _format(_OBJECT),
    "guided_regex": _format(_REGEX),
    "guided_choice": _format(_CHOICE, ", the choices with | between them"),
    "guided_grammar": _format(_GRAMMAR, _LARK),
    "guided_decoding_backend": _NONE,
    "guided_whitespace_pattern": "leave it out; a grammar may say which white space it takes",
    "structured_outputs": _format(_ANY),
    "structural_tag": "force a call by tool_choice, or use a grammar as response_format",
    # llama.cpp, SGLang, TGI and Ollama
    "json_schema": _format(_SCHEMA),
    "grammar": _format(_GRAMMAR, f"{_LARK} rather than GBNF"),
    "regex": _format(_REGEX),
    "ebnf": _format(_GRAMMAR, f"{_LARK} rather than EBNF"),
    "format": _format(f"{_OBJECT} or {_SCHEMA}"),
}
"""Remedies by the name of the field, at the top of a body."""
