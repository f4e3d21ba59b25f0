"""llama.cpp through its Python binding, plain and with the speculation that the binding offers, on GGUF files.

That is prompt lookup, whose drafts follow an earlier occurrence of the newest tokens, and a draft model of the user's.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

REQUIREMENTS = ["llama-cpp-python>=0.3.16"]
PLAIN = "llama.cpp, the file as it is"
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {"file": "gguf"},
    f"{PLAIN}, prompt lookup": {"file": "gguf", "lookup": {"num_pred_tokens": 8}},
    f"{PLAIN}, prompt lookup of 2 tokens": {"file": "gguf", "lookup": {"num_pred_tokens": 2}},
    f"{PLAIN}, prompt lookup by 4-grams": {"file": "gguf", "lookup": {"num_pred_tokens": 8, "max_ngram_size": 4}},
    f"{PLAIN}, draft model": {"file": "gguf", "draft": 8},
    f"{PLAIN}, draft model, 4 tokens": {"file": "gguf", "draft": 4},
    "llama.cpp Q8_0": {"file": "gguf_q8_0"},
    "llama.cpp Q8_0, prompt lookup": {"file": "gguf_q8_0", "lookup": {"num_pred_tokens": 8}},
}
"""Lookup of two tokens is what the binding advises for CPUs. draft: tokens that the draft model drafts per pass."""


def version() -> str:
    """The version of the binding."""
    import llama_cpp

    return str(llama_cpp.__version__)


def load(weights: dict[str, str], options: dict[str, Any], threads: int, device: str) -> Callable[..., list[int]]:
    """Greedy decoding of a GGUF file, on the CPU. Raises ValueError for a draft model with another vocabulary."""
    del device
    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    settings = {"n_ctx": options["context"], "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    draft: Any = LlamaPromptLookupDecoding(**options["lookup"]) if "lookup" in options else None
    if "draft" in options:
        draft = _draft_model(Llama(weights["draft"], **settings), options["draft"], options["context"])
    model = Llama(weights[options["file"]], draft_model=draft, logits_all=draft is not None, **settings)
    if "draft" in options and draft.model.n_vocab() != model.n_vocab():
        raise ValueError(f"the draft model has {draft.model.n_vocab()} tokens, the model {model.n_vocab()}")

    def generate(tokens: list[int], count: int, stops: list[int]) -> list[int]:
        model.reset()
        generated: list[int] = []
        for token in _greedy(model, tokens):
            generated.append(token)
            if token in stops or len(generated) == count:
                break
        return generated

    return generate


def _greedy(model: Any, tokens: list[int]) -> Any:
    return model.generate(tokens, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True)


def _draft_model(model: Any, count: int, context: int) -> Any:
    """A smaller model as the binding takes one: greedy drafts. It keeps the cache of what the drafts share."""
    import numpy as np
    from llama_cpp.llama_speculative import LlamaDraftModel

    class DraftModel(LlamaDraftModel):  # type: ignore[misc]  # the binding is not installed where types are checked
        def __init__(self) -> None:
            self.model = model

        def __call__(self, input_ids: Any, /, **_: Any) -> Any:
            room = max(0, min(count, context - len(input_ids)))
            return np.array([*islice(_greedy(model, input_ids.tolist()), room)], dtype=np.intc)

    return DraftModel()
