"""Make a model of 800 MB on a claim, with the demo's tokenizer, and print its reply to a prompt.

A program for a pod of the predictor's image: `big_model.py FROM INTO PROMPT TOKENS`. The weights
are stored in bfloat16, and transformers gives the reply in float32. A server in float32 must then
give the same reply, and write a store of 1.6 GB, which takes seconds.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig


def main(source: Path, into: Path, prompt: str, tokens: int) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=2048,
        intermediate_size=5504,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        dtype=torch.bfloat16,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(into)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, into / name)
    model = AutoModelForCausalLM.from_pretrained(into, dtype=torch.float32).eval()
    ids = tokenizer(prompt, return_tensors="pt")
    reply = model.generate(**ids, max_new_tokens=tokens, do_sample=False)
    new = reply[0, ids["input_ids"].shape[1] :]
    print(json.dumps({"text": tokenizer.decode(new, skip_special_tokens=True)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
