"""llama.cpp through its Python binding, plain and with its prompt lookup, on GGUF files."""

from collections.abc import Callable
from typing import Any

REQUIREMENTS = ["llama-cpp-python>=0.3.16"]
VARIANTS: dict[str, dict[str, Any]] = {
    "llama.cpp, the file as it is": {"file": "gguf"},
    "llama.cpp, the file as it is, prompt lookup": {"file": "gguf", "lookup": True},
    "llama.cpp Q8_0": {"file": "gguf_q8_0"},
    "llama.cpp Q8_0, prompt lookup": {"file": "gguf_q8_0", "lookup": True},
}
CONTEXT = 4096


def load(weights: dict[str, str], options: dict[str, Any], threads: int, device: str) -> Callable[..., list[int]]:
    """Greedy decoding of a GGUF file, on the CPU."""
    del device
    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    draft = LlamaPromptLookupDecoding(num_pred_tokens=8) if options.get("lookup") else None
    model = Llama(
        weights[options["file"]], n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, draft_model=draft,
        logits_all=draft is not None, verbose=False,
    )  # fmt: skip

    def generate(tokens: list[int], count: int, stops: list[int]) -> list[int]:
        model.reset()
        generated: list[int] = []
        for token in model.generate(tokens, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True):
            generated.append(token)
            if token in stops or len(generated) == count:
                break
        return generated

    return generate
