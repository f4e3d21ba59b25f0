"""`transformers` generate(), plain and with its prompt lookup."""

from collections.abc import Callable
from typing import Any

REQUIREMENTS: list[str] = []
VARIANTS: dict[str, dict[str, Any]] = {
    "transformers bf16": {"dtype": "bfloat16"},
    "transformers fp32": {"dtype": "float32"},
    "transformers bf16, compiled": {"dtype": "bfloat16", "compiled": True},
    "transformers bf16, prompt lookup": {"dtype": "bfloat16", "lookup": 8},
}


def version() -> str:
    """The version of the library."""
    import transformers

    return str(transformers.__version__)


def load(weights: dict[str, str], options: dict[str, Any], threads: int, device: str) -> Callable[..., list[int]]:
    """Greedy decoding of the backbone in `directory`."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(weights["directory"], dtype=getattr(torch, options["dtype"]))
    model.eval().to(device)
    more = {"prompt_lookup_num_tokens": options["lookup"]} if "lookup" in options else {}
    if options.get("compiled"):
        model.generation_config.cache_implementation = "static"
        model.forward = torch.compile(model.forward, dynamic=True)

    def generate(tokens: list[int], count: int, stops: list[int]) -> list[int]:
        prompt = torch.tensor([tokens], device=device)
        with torch.inference_mode():
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False,
                pad_token_id=min(stops, default=0), eos_token_id=stops or None, **more,
            )  # fmt: skip
        generated: list[int] = out[0, len(tokens) :].tolist()
        return generated

    return generate
