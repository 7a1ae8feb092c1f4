"""A training job: Llama from transformers, with random weights, compiled, three steps on a GPU.

LLAMA_LAYERS and LLAMA_MODE say how many layers it has, and in which mode it is compiled. It ends as
train.py does.
"""

import json
import os
import time

import torch
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

BATCH, LENGTH, STEPS = 2, 1024, 3


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_attention_heads=16,
        num_key_value_heads=8,
        num_hidden_layers=int(os.environ.get("LLAMA_LAYERS", "12")),
        vocab_size=32_000,
        use_cache=False,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    step_of = torch.compile(model, mode=os.environ.get("LLAMA_MODE", "default"))
    tokens = torch.randint(0, config.vocab_size, (BATCH, LENGTH), device="cuda")
    losses: list[str] = []
    first_step_seconds = first_step_ended = 0.0
    began = time.perf_counter()
    for step in range(STEPS):
        loss = step_of(input_ids=tokens, labels=tokens).loss
        loss.backward()
        model.zero_grad()
        losses.append(loss.item().hex())
        if step == 0:
            torch.cuda.synchronize()
            first_step_seconds = time.perf_counter() - began
            first_step_ended = time.time()
    result = {
        "first_step_seconds": first_step_seconds,
        "first_step_ended": first_step_ended,
        "losses": losses,
        "inductor": dict(counters["inductor"]),
        "aot_autograd": dict(counters["aot_autograd"]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
