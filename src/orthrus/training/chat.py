"""Conversations as token ids, with the spans in which the assistant speaks, by the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
MARK = "Xorthrususerturn"
"""Stands for a user's words while a template is taken apart."""


@dataclass(frozen=True)
class Encoded:
    """Token ids, and the half-open spans of them that the assistant wrote, each up to its end token."""

    tokens: list[int]
    spans: list[tuple[int, int]]


@dataclass(frozen=True)
class Opening:
    """What stands before a user's words, as tokens, and the token that ends them."""

    tokens: list[int]
    end_token_id: int


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], end_token_ids: frozenset[int], *, reply: bool
) -> Encoded:
    """Render and tokenise messages; with `reply`, up to where the assistant's next turn begins.

    An earlier assistant turn that the template changes once others follow has no span. Raises ValueError where the
    tokenizer has no template, or where its last assistant turn cannot be told apart.
    """
    text = _render(tokenizer, messages, reply)
    batch = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens, offsets = batch["input_ids"], batch["offset_mapping"]
    spans = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before, upto = _render(tokenizer, messages[:index], True), _render(tokenizer, messages[: index + 1], False)
            if upto.startswith(before) and text.startswith(upto):
                inside = [n for n, (start, _) in enumerate(offsets) if len(before) <= start < len(upto)]
                ends = [n for n in inside if tokens[n] in end_token_ids]
                if inside:
                    spans.append((inside[0], (ends or inside)[0 if ends else -1] + 1))
            elif index == len(messages) - 1:
                raise ValueError(
                    "the chat template does not continue what it renders before the assistant's turn, so that turn"
                    " cannot be told apart; train on records made by `orthrus distill`, which carry their tokens"
                )
    return Encoded(tokens, spans)


def opening(tokenizer: PreTrainedTokenizerBase, system: str | None, words: str) -> Opening:
    """The bare template up to a user's words, of which the first may be given. Raises ValueError without template."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    before, found, after = _render(tokenizer, [*messages, {"role": "user", "content": MARK}], False).partition(MARK)
    following = tokenizer(after, add_special_tokens=False)["input_ids"]
    if not found or not following:
        raise ValueError("the chat template has no user turn that ends with a token of its own")
    return Opening(tokenizer(before + words, add_special_tokens=False)["input_ids"], following[0])


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], reply: bool) -> str:
    if not tokenizer.chat_template:
        raise ValueError(
            "this tokenizer has no chat template, so assistant turns cannot be told from others: give the checkpoint a"
            " `chat_template.jinja` (or `chat_template` in tokenizer_config.json)"
        )
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=reply)  # type: ignore[return-value]
