"""Conversations as token ids, rendered by the chat template, with the spans of the assistant turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
PLACEHOLDER = "Xorthrususerturn"
"""The user text with which a template is rendered to locate its user turn."""


@dataclass(frozen=True)
class Encoded:
    """Token ids, and the half-open spans of the assistant turns, end tokens included."""

    tokens: list[int]
    spans: list[tuple[int, int]]


@dataclass(frozen=True)
class UserTurnPrefix:
    """The tokens of the template before the text of a user turn, and the token that ends the turn."""

    tokens: list[int]
    end_token_id: int


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], end_token_ids: frozenset[int], *, reply: bool
) -> Encoded:
    """Render and tokenise messages; with `reply`, the result ends where the next assistant turn begins.

    An earlier assistant turn gets no span if the template renders it differently once other turns follow. Raises
    ValueError where the tokenizer has no template, or where the last assistant turn cannot be located.
    """
    text = _render(tokenizer, messages, reply)
    batch = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens, offsets = batch["input_ids"], batch["offset_mapping"]
    spans = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _render(tokenizer, messages[:index], True)
            through = _render(tokenizer, messages[: index + 1], False)
            if through.startswith(before) and text.startswith(through):
                inside = [n for n, (start, _) in enumerate(offsets) if len(before) <= start < len(through)]
                ends = [n for n in inside if tokens[n] in end_token_ids]
                if inside:
                    spans.append((inside[0], (ends or inside)[0 if ends else -1] + 1))
            elif index == len(messages) - 1:
                raise ValueError(
                    "the chat template does not continue the text that it renders before the assistant's turn, so that"
                    " turn cannot be located; train on records of `orthrus distill`, which contain their tokens"
                )
    return Encoded(tokens, spans)


def user_turn_prefix(tokenizer: PreTrainedTokenizerBase, system: str | None, words: str) -> UserTurnPrefix:
    """The template up to the text of a user turn that begins with `words`. Raises ValueError without a template."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    rendered = _render(tokenizer, [*messages, {"role": "user", "content": PLACEHOLDER}], False)
    before, placeholder, after = rendered.partition(PLACEHOLDER)
    following = tokenizer(after, add_special_tokens=False)["input_ids"]
    if not placeholder or not following:
        raise ValueError("the chat template has no user turn that ends with a token of its own")
    return UserTurnPrefix(tokenizer(before + words, add_special_tokens=False)["input_ids"], following[0])


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], reply: bool) -> str:
    if not tokenizer.chat_template:
        raise ValueError(
            "this tokenizer has no chat template, so assistant turns cannot be located: give the checkpoint a"
            " `chat_template.jinja` (or `chat_template` in tokenizer_config.json)"
        )
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=reply)
