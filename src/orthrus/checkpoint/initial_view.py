"""The diffusion view with which training starts: that of an adapter, or a copy of the AR projections."""

from __future__ import annotations

from orthrus.checkpoint.hub import Checkpoint, copy_projections
from orthrus.config import DiffusionConfig
from orthrus.model.decoder import Decoder


def give_view(
    checkpoint: Checkpoint, block_size: int | None, mask_token: int | str | None, *, last_row: bool | None = None
) -> Decoder:
    """Set the diffusion view that an unprepared checkpoint trains: its own, or copies of the AR projections.

    A setting that is None keeps its value; a new view has blocks of 32. last_row: whether the last row of a block is
    trained; None for as many rows as before, and for all rows of a view that is new or has blocks of another size.
    Raises ValueError where the mask token is missing or unknown.
    """
    decoder, tokenizer = checkpoint.decoder, checkpoint.tokenizer
    existing = decoder.diffusion
    if isinstance(mask_token, str):
        mask_id = tokenizer.get_vocab().get(mask_token)
        if mask_id is None:
            raise ValueError(f"mask token {mask_token!r} is not in the vocabulary; give its exact text or its id")
        mask_token = int(mask_id)
    if mask_token is None and existing is None:
        special = sorted(t for t in tokenizer.get_added_vocab() if t not in (tokenizer.chat_template or ""))
        hint = f" (special tokens that the chat template does not use: {', '.join(special[:6])})" if special else ""
        raise ValueError(f"a new view needs --mask-token: a token that never occurs in chat{hint}")
    rows = block_size or (existing.block_size if existing else 32)
    mask = existing.mask_token_id if mask_token is None and existing else mask_token
    assert mask is not None
    drafted = existing.draft_vocabulary if existing else None
    decoder.set_view(DiffusionConfig(rows, mask, trained_rows(existing, rows, last_row), draft_vocabulary=drafted))
    if existing is None:
        copy_projections(decoder)
    return decoder


def trained_rows(existing: DiffusionConfig | None, block_size: int, last_row: bool | None) -> int:
    """The trained rows of a block, as `give_view` sets them."""
    if last_row is None and existing is not None and existing.block_size == block_size:
        return existing.trained_rows
    return block_size - (last_row is False)
