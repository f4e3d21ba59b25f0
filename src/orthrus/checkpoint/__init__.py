"""Checkpoints: backbones from a directory, the hub or a GGUF file; adapters; the published Orthrus layout."""
