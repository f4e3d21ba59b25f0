"""The view that comes with this package for a backbone: found by its name, or by the hash of its tensors."""

from __future__ import annotations

from pathlib import Path

from orthrus.checkpoint import adapter, known_models


def view_for(backbone: adapter.BackboneIdentity) -> Path | None:
    """The directory of the bundled view of a known model, or of one that was trained on the same tensors and
    vocabulary, under whatever name they were loaded. None where there is none."""
    named = known_models.known(backbone.id)
    if named is not None:
        return named.view
    return next((view for model in known_models.KNOWN if (view := model.view) and _fits(view, backbone)), None)


def _fits(view: Path, backbone: adapter.BackboneIdentity) -> bool:
    trained = adapter.read_config(view).backbone
    return (trained.sha256, trained.tokenizer_sha256) == (backbone.sha256, backbone.tokenizer_sha256)
