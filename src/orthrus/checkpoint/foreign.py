"""Directories that look like a checkpoint and are something else: each is refused with its name and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orthrus.checkpoint.validation import read_json, short_repr

ADAPTER_CONFIG = "adapter_config.json"


def refuse_foreign(directory: Path) -> None:
    """Raise ValueError for a directory with an adapter, weights quantised for MLX, or GGUF files alone."""
    config = directory / "config.json"
    if config.exists():
        _refuse_mlx(directory, read_json(config))
        return
    if (directory / ADAPTER_CONFIG).exists():
        content = read_json(directory / ADAPTER_CONFIG)
        refuse_lora(directory, content)
        if isinstance(content.get("backbone"), dict):
            backbone = short_repr(content["backbone"].get("id"))
            raise ValueError(
                f"{directory} is a diffusion view without its backbone: load the backbone ({backbone}), and give this"
                " directory as --adapter"
            )
    files = sorted(file.name for file in directory.glob("*.gguf"))
    if files:
        raise ValueError(f"{directory} has no config.json, but GGUF files: name one of them, {', '.join(files[:8])}")


def refuse_lora(directory: Path, content: dict[str, Any]) -> None:
    """Raise ValueError if an `adapter_config.json` is one of PEFT, such as of a LoRA."""
    if "peft_type" not in content:
        return
    base = content.get("base_model_name_or_path")
    of = f"{content['peft_type']} for {base}" if base else content["peft_type"]
    raise ValueError(
        f"{directory} is a PEFT adapter ({of}), neither a checkpoint nor a diffusion view. Merge it into its base model"
        " (peft's merge_and_unload(), then save_pretrained()) and load the merged directory"
    )


def _refuse_mlx(directory: Path, content: dict[str, Any]) -> None:
    """Other quantised weights are refused by `families.decoder_config`, as some families read them."""
    mlx = content.get("quantization")
    if isinstance(mlx, dict) and "group_size" in mlx:
        bits = short_repr(mlx.get("bits"))
        raise ValueError(
            f"{directory} is quantised to {bits} bits for Apple's MLX, which is not read: load the checkpoint that it"
            " was made from, or a GGUF file"
        )
