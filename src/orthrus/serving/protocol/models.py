"""The answers of `/v1/models`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class ModelCard(BaseModel):
    """A served model. `max_model_len` is the most tokens of a request, prompt and answer together."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "orthrus"
    root: str
    parent: None = None
    max_model_len: int


class ModelList(BaseModel):
    """All served models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
