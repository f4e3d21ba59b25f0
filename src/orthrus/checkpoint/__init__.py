"""Checkpoints: backbones from a directory, a hub or a GGUF file; adapters; the published Orthrus layout."""
