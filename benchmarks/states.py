"""Many users of models that keep a state, compared with `generate`, which serves one at a time.

Two random models in main memory: ``hybrid`` has the shape of Qwen3-Next (gated delta rule, every
fourth layer full attention, experts), ``mamba2`` that of Mamba-2. Each user has one request. The
baseline is transformers' `generate` with the same weights, threads and prompts, in this process.
"""

from __future__ import annotations

import argparse
import gc
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import add_path_flags, finish, machine, table

TARGET = 6.0
"""Least tokens per second of sixteen users, as a multiple of the baseline's."""

_VOCABULARY = 4096


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--models", default="hybrid,mamba2", help="of hybrid,mamba2")
    add("--users", type=int, default=16)
    add("--prompt_tokens", type=int, default=32)
    add("--new_tokens", type=int, default=32)
    add_path_flags(parser)
    flags = parser.parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them."""
    before, measured = machine(), {}
    for name in flags.models.split(","):
        with tempfile.TemporaryDirectory(dir=flags.workdir, prefix="states-") as work:
            measured[name] = _measure_model(name, flags, Path(work))
    rows = [
        (name, f"{one['bytes'] / 1e6:.0f}", f"{one['raw']:.2f}", f"{one['served']:.2f}", one["x"])
        for name, one in ((n, m | {"x": f"{m['x_raw']:.1f}"}) for n, m in measured.items())
    ]
    print(table(("model", "MB", "generate tokens/s", f"{flags.users} users", "x"), rows))
    reached = {name: one["x_raw"] >= TARGET for name, one in measured.items()}
    print(f"target >= {TARGET:g}: {reached}")
    return {"models": measured, "reached": reached, "machine": [before, machine()]}


def _config(name: str) -> Any:
    import transformers as hf

    ids = {"vocab_size": _VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    if name == "mamba2":
        shape = {"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 32, "head_dim": 64}
        return hf.Mamba2Config(**ids, **shape, n_groups=1, state_size=64, chunk_size=32)
    return hf.Qwen3NextConfig(
        **ids,
        hidden_size=1024,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        linear_num_key_heads=8,
        linear_num_value_heads=16,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        num_experts=16,
        num_experts_per_tok=2,
        moe_intermediate_size=256,
        shared_expert_intermediate_size=256,
    )


def _measure_model(name: str, flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(_config(name), dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.save_pretrained(work)
    size = sum(weight.nbytes for weight in model.parameters())
    chance = random.Random(0)
    prompts = [
        [chance.randrange(4, _VOCABULARY) for _ in range(flags.prompt_tokens)]
        for _ in range(flags.users)
    ]
    threads = torch.get_num_threads()
    raw = _generate(model, prompts[:3], flags.new_tokens)
    del model
    gc.collect()
    served, slots = _serve(work, prompts, flags.new_tokens)
    torch.set_num_threads(threads)
    return {"bytes": size, "raw": raw, "served": served, "slots": slots, "x_raw": served / raw}


def _generate(model: Any, prompts: Sequence[Sequence[int]], new: int) -> float:
    """Return the tokens per second of one prompt after the other."""
    import torch

    def run(prompt: Sequence[int], count: int) -> None:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=3, **options)

    run(prompts[0], 2)
    began = time.perf_counter()
    for prompt in prompts:
        run(prompt, new)
    return len(prompts) * new / (time.perf_counter() - began)


class _User:
    """Counts the tokens of one reply."""

    def __init__(self) -> None:
        self.tokens = 0
        self.ended = threading.Event()

    def on_token(self, _: Any) -> bool:
        """Count a token and go on."""
        self.tokens += 1
        return False

    def on_finish(self, _: Any) -> None:
        """Note the end."""
        self.ended.set()


def _serve(folder: Path, prompts: Sequence[Sequence[int]], new: int) -> tuple[float, int]:
    """Return the tokens per second of all prompts at once, and the slots for states."""
    from predictor import startup
    from predictor.engine.generation.sampling_params import SamplingParams
    from predictor.pod.resources import Memory, PodResources
    from predictor.settings import read_settings
    from predictor.weights.progress import Progress

    memory = 8 * 2**30
    settings = read_settings(
        {"model_dir": str(folder), "max_model_len": 512, "max_batch_size": len(prompts)}, environ={}
    )
    pod = PodResources((), Memory(memory, memory, "stated by the benchmark"), None)
    prepared = startup.prepare(settings, startup.open_checkpoint(settings), pod)
    started: Any = startup.bring_up(settings, prepared, Progress())
    try:
        for count in (2, new):  # the first round warms up
            users = [_User() for _ in prompts]
            began = time.perf_counter()
            for prompt, user in zip(prompts, users, strict=True):
                started.engine.submit(prompt, SamplingParams(max_new_tokens=count), user)
            for user in users:
                user.ended.wait()
            seconds = time.perf_counter() - began
    finally:
        started.engine.stop()
        started.engine.join(30)
        started.weights.release()
    return sum(user.tokens for user in users) / seconds, prepared.placement.state_slots


if __name__ == "__main__":
    raise SystemExit(main())
