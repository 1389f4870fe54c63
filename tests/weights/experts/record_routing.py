"""Records `routing.txt`: which experts a mixture chose for each token of a text.

The mixture is tiny and has random weights from a seed, so its routing is real only in its form: a
softmax router over hidden states of real text, whose frequent words recur. Trained models have more
overlap from token to token. To run it: `python -m tests.weights.experts.record_routing`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from tests.weights.experts.routings import RECORDED, write_routing

ROOT = Path(__file__).parents[3]
TOKENS, EXPERTS, ROUTED, LAYER = 1024, 64, 4, 2


def main() -> None:
    """Run the mixture over the licence, and write the choices of its last layer."""
    tokenizer = Tokenizer.from_file(str(ROOT / "examples" / "demo-model" / "tokenizer.json"))
    tokens = tokenizer.encode((ROOT / "LICENSE").read_text()).ids[:TOKENS]
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=LAYER + 1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=EXPERTS,
        num_experts_per_tok=ROUTED,
        max_position_embeddings=TOKENS,
    )
    with torch.inference_mode():
        output = Qwen3MoeForCausalLM(config).eval()(
            torch.tensor([tokens]), output_router_logits=True
        )
    write_routing(RECORDED, output.router_logits[LAYER].topk(ROUTED).indices.tolist())


if __name__ == "__main__":
    main()
