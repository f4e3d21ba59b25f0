"""Options that name tokens by their id, their entry in the vocabulary, or their text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orthrus.api import Model, Options


def biases(given: list[str] | None) -> list[tuple[str, float]]:
    """Parse --logit-bias into pairs of token (as given) and value. Raises ValueError unless ID_OR_TEXT=VALUE."""
    parsed = []
    for item in given or ():
        token, _, value = item.rpartition("=")
        try:
            parsed.append((token, float(value)))
        except ValueError:
            token = ""
        if not token:
            raise ValueError(f"--logit-bias takes ID_OR_TEXT=VALUE, such as 42=-5 or '<|im_end|>=2', not {item!r}")
    return parsed


def named_tokens(model: Model, stops: list[str] | None, biases: list[tuple[str, float]]) -> Options:
    """The options that name tokens by their text. Raises ValueError for a text that is no token."""
    return {
        "stop_token_ids": [token_id(model, text, "stop token") for text in stops or ()],
        "logit_bias": {token_id(model, text, "token"): value for text, value in biases},
    }


def token_id(model: Model, text: str, what: str) -> int:
    """The id of a token given by id, by its entry in the vocabulary, or by text that is one token."""
    if text.isdecimal():
        return int(text)
    entry = model.checkpoint.text.vocabulary().get(text)
    if entry is not None:
        return int(entry)
    ids = model.checkpoint.text.encode(text, special_tokens=False)
    if len(ids) != 1 or model.decode(ids) != text:
        raise ValueError(f"{what} {text!r} is not in the vocabulary; give its exact text or its id")
    return int(ids[0])
