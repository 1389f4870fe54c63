"""Decode passes over long contexts: attention over views of the KV cache, and what it is held to.

Makes a random Llama or DeepSeek of four layers, and fills its KV cache with seeded values. Each
forward pass gives one more token to each row. The contestants, in one process and on the same
weights:

- ``views``: the engine as it serves. Rows attend to their pages in place.
- ``gathered``: the engine as for an architecture that needs whole rows. It copies them, padded.
- ``generate``: one row, as `generate` of transformers computes it, with its own cache.

With ``--kernels``, the attention of one layer alone is computed in several ways. ``flex`` is
compiled, and needs a C++ compiler. ``views of tokens`` reads a pool that keeps the heads of a token
together. Rounds are interleaved, and ratios are formed within a round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from measuring import CannotMeasure, add_path_flags, finish, machine, table
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, DeepseekV3Config, DynamicCache, LlamaConfig

from predictor.engine.generation.kv_accounting import BLOCK_TOKENS
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.runner import BatchRunner
from predictor.linear.install import install
from predictor.private.cache_layers import cache_layers

SHAPES = (
    *((1, 2048), (8, 2048), (32, 2048), (1, 4096), (1, 8192), (8, 8192), (32, 8192)),
    *((1, 16384), (1, 32768), (8, 32768)),
)
COPIED, ALONE = 3.0, 0.9
"""Least speed of views, as a multiple of copies at 8 rows of 8,192 tokens, and of `generate`."""
MOST_TOKENS = 2**18
BASELINE = "gathered"
VOCABULARY = 4096
KINDS = ("llama", "eager", "latents")
"""By PyTorch's attention; by products of matrices in the model's own code; to compressed keys and
values, as DeepSeek-V3 does."""
STEP = 512
"""Tokens by which rows grow in turn while the cache is filled, as by prompts that are in chunks."""

Way = Callable[[], torch.Tensor]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    flags = _parser().parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--shapes", nargs="+", type=_shape, default=list(SHAPES), help="rows x context, as 8x8192")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--hidden", type=int, default=1024, help="width of the model, a multiple of 256")
    add("--heads", type=int, default=16, help="heads of queries")
    add("--kv-heads", type=int, default=4, help="heads of keys and values")
    add("--layers", type=int, default=4)
    add("--kind", choices=KINDS, default="llama", help="how the model attends (default: llama)")
    add("--new", type=int, default=1, help="new tokens of each row")
    add("--shared", type=int, default=0, help="tokens of a prefix that all rows share")
    add("--rounds", type=int, default=7)
    add("--threads", type=int, help="threads to compute with; those of torch if it is not set")
    add("--kernels", action="store_true", help="time the attention of one layer alone")
    add_path_flags(parser)
    return parser


def _shape(text: str) -> tuple[int, int]:
    rows, _, context = text.partition("x")
    return int(rows), int(context)


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: The contestants do not agree, or there is nothing to compare.
    """
    if any(rows * context > MOST_TOKENS for rows, context in flags.shapes) or flags.rounds < 1:
        raise CannotMeasure(f"It takes 1 round, and at most {MOST_TOKENS} tokens in all rows.")
    if flags.threads:
        torch.set_num_threads(flags.threads)
    results, before = [], machine()
    make = _kernels if flags.kernels else _passes
    for rows, context in flags.shapes:
        with torch.inference_mode():
            ways = make(flags, rows, context)
            _check(ways, flags.dtype)
            seconds = _time(ways, flags.rounds)
        results.append(_summary(rows, context, flags.new, seconds))
    names = list(dict.fromkeys(name for result in results for name in result["seconds"]))
    titles = [f"{name} ms" for name in names] + [f"{name} / views (wall, cpu)" for name in names]
    print(table(["rows", "context", *titles], [_line(one, names) for one in results]))
    size = {
        name: getattr(flags, name)
        for name in ("kind", "dtype", "hidden", "heads", "kv_heads", "shared")
    }
    result = size | {"threads": torch.get_num_threads(), "shapes": results}
    reached = targets(result)
    if reached:
        rows = [(one["what"], f"{one['measured']:.2f}", one["target"]) for one in reached]
        print(table(("what", "measured", "target"), rows))
    return result | {"targets": reached, "machine": [before, machine()]}


def targets(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the measured values beside their targets, of the shapes that have one."""
    return [
        {
            "what": f"{rows} x {context}: time of {name} / time of views",
            "target": f">= {least:g}",
            "measured": one["ratios"][name],
            "reached": one["ratios"][name] >= least,
        }
        for one in result["shapes"]
        for rows, context in [(one["rows"], one["context"])]
        for name, least, is_meant in (
            ("gathered", COPIED, (rows, context) == (8, 8192)),
            ("generate", ALONE, rows == 1),
        )
        if is_meant and name in one["ratios"]
    ]


def _passes(flags: argparse.Namespace, rows: int, context: int) -> dict[str, Way]:
    """Return the forward passes of each contestant."""
    model = _model(flags)
    tokens = [[(7 * key + n) % VOCABULARY for n in range(flags.new)] for key in range(rows)]
    runner = BatchRunner(
        model,
        device=torch.device("cpu"),
        layers=cache_layers(model),
        pages=rows * (context + STEP) + 1,
        max_length=context + STEP,
    )
    _fill(runner, rows, context, flags.shared // BLOCK_TOKENS)
    chunks = [SequenceChunk(key, context, tokens[key]) for key in range(rows)]

    def run(gathers: bool) -> torch.Tensor:
        runner.cache.gathers = gathers
        return runner.run(chunks)

    ways: dict[str, Way] = {"views": lambda: run(False), "gathered": lambda: run(True)}
    if rows == 1:
        ways["generate"] = _generate(model, runner, tokens[0], context)
    return ways


def _model(flags: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    shape = {
        "hidden_size": flags.hidden,
        "intermediate_size": flags.hidden // 256 * 704,
        "num_hidden_layers": flags.layers,
        "num_attention_heads": flags.heads,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2**17,
        "dtype": flags.dtype,
    }
    if flags.kind == "latents":
        config: Any = DeepseekV3Config(
            **shape,
            num_key_value_heads=flags.heads,
            q_lora_rank=None,
            first_k_dense_replace=flags.layers,
        )
    else:
        own = "eager" if flags.kind == "eager" else "sdpa"
        config = LlamaConfig(**shape, num_key_value_heads=flags.kv_heads, attn_implementation=own)
    model = AutoModelForCausalLM.from_config(config)
    model = model.to(getattr(torch, flags.dtype)).eval()
    install(model)
    return model


def _fill(runner: BatchRunner, rows: int, context: int, shared: int) -> None:
    """Give rows pages for their context, of which they share some blocks, with seeded values."""
    runner.run([SequenceChunk(0, 0, [1])])
    pool = runner.cache.pages
    pool.take(0, shared * BLOCK_TOKENS)
    for block in range(shared):
        pool.enter(0, block, b"%d" % block)
        for key in range(1, rows):
            pool.adopt(key, block * BLOCK_TOKENS, b"%d" % block)
    for end in range(STEP, context + STEP, STEP):
        for key in range(rows):
            pool.take(key, min(end, context))
    generator = torch.Generator().manual_seed(1)
    for layer in runner.cache.layers:
        for pool in (layer.keys, layer.values):
            pool[:, 1:].normal_(generator=generator)


def _generate(model: Any, runner: BatchRunner, tokens: list[int], context: int) -> Way:
    """Return forward passes with transformers' own cache, which has the same keys and values."""
    pages = torch.tensor(runner.cache.owned_pages(0)[:context])
    cache = DynamicCache(config=model.config)
    for index, layer in enumerate(runner.cache.layers):
        cache.update(layer.keys[None, :, pages], layer.values[None, :, pages], index)

    def run() -> torch.Tensor:
        output = model(
            input_ids=torch.tensor([tokens]),
            past_key_values=cache,
            attention_mask=torch.ones(1, context + len(tokens), dtype=torch.long),
            logits_to_keep=1,
        )
        cache.crop(-len(tokens))
        return output.logits[:, -1]

    return run


def _kernels(flags: argparse.Namespace, rows: int, context: int) -> dict[str, Way]:
    """Return ways to compute the attention of one layer, for one new token of each row."""
    heads, size, groups = flags.kv_heads, flags.hidden // flags.heads, flags.heads // flags.kv_heads
    shape, dtype = (heads, rows * context + 1, size), getattr(torch, flags.dtype)
    generator = torch.Generator().manual_seed(2)
    keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    query = torch.randn(rows, heads, groups, size, generator=generator).to(dtype)
    pages = torch.arange(1, rows * context + 1)
    mask = torch.ones(rows, 1, 1, context, dtype=torch.bool)
    views = [slice(1 + row * context, 1 + (row + 1) * context) for row in range(rows)]
    by_token = [pool.transpose(0, 1).contiguous().transpose(0, 1) for pool in (keys, values)]

    def gathered() -> torch.Tensor:
        both = [
            pool.transpose(0, 1)[pages].view(rows, context, heads, size).transpose(1, 2)
            for pool in by_token
        ]
        return scaled_dot_product_attention(query, *both, attn_mask=mask)

    def viewed(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        both = [(keys[None, :, view], values[None, :, view]) for view in views]
        return torch.cat(
            [scaled_dot_product_attention(query[i : i + 1], *pair) for i, pair in enumerate(both)]
        )

    def products() -> torch.Tensor:
        scaled = query * size**-0.5
        scores = [torch.bmm(scaled[i], keys[:, view].mT) for i, view in enumerate(views)]
        weights = [score.softmax(-1, dtype=torch.float32).to(dtype) for score in scores]
        return torch.stack(
            [torch.bmm(w, values[:, v]) for w, v in zip(weights, views, strict=True)]
        )

    return {
        "views": lambda: viewed(keys, values),
        "gathered": gathered,
        "views of tokens": lambda: viewed(*by_token),
        "products": products,
        **_flex(query, keys, values, rows, context),
    }


def _flex(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: int, context: int
) -> dict[str, Way]:
    """Return flex attention over the pool, with a mask of blocks that gives each row its pages."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def is_own(batch: Any, head: Any, position: Any, page: Any) -> Any:  # noqa: ARG001
        return (page >= position * context) & (page < (position + 1) * context)

    mask = create_block_mask(is_own, None, None, rows, rows * context, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)
    by_head = query.permute(1, 2, 0, 3).flatten(0, 1)[None]
    both = [pool[None, :, 1:] for pool in (keys, values)]
    try:
        compiled(by_head, *both, block_mask=mask, enable_gqa=True)
    # Whatever a compiler says, the other ways are timed.
    except Exception as error:
        print(f"flex attention is left out: {type(error).__name__}: {str(error)[:200]}")
        return {}

    def flex() -> torch.Tensor:
        output = compiled(by_head, *both, block_mask=mask, enable_gqa=True)
        return output[0].unflatten(0, query.shape[1:3]).permute(2, 0, 1, 3)

    return {"flex": flex}


def _check(ways: Mapping[str, Way], dtype: str) -> None:
    """Raise `CannotMeasure` if results differ by more than rounding."""
    results = {name: way().float() for name, way in ways.items()}
    far = 1e-4 if dtype == "float32" else 0.1
    for name, result in results.items():
        distance = float((result - results[BASELINE]).abs().max())
        if not distance <= far:
            raise CannotMeasure(f"Results of {name!r} differ by {distance:.2g}.")


def _time(ways: Mapping[str, Way], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return wall and processor seconds of each round, in which every way runs once."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = (time.perf_counter(), time.process_time())
            ways[name]()
            ends = (time.perf_counter(), time.process_time())
            seconds[name].append((ends[0] - start[0], ends[1] - start[1]))
    return seconds


def _summary(
    rows: int, context: int, new: int, seconds: Mapping[str, Sequence[tuple[float, float]]]
) -> dict[str, Any]:
    """Return medians of a shape; ratios say how many times as long as ``views`` each way takes."""
    ratios = {
        name: [
            [way / view for way, view in zip(one, views, strict=True)]
            for one, views in zip(rounds, seconds["views"], strict=True)
        ]
        for name, rounds in seconds.items()
    }
    return {
        "rows": rows,
        "context": context,
        "new": new,
        "seconds": {name: statistics.median(w for w, _ in t) for name, t in seconds.items()},
        "cpu_seconds": {name: statistics.median(c for _, c in t) for name, t in seconds.items()},
        "ratios": {name: statistics.median(r for r, _ in t) for name, t in ratios.items()},
        "cpu_ratios": {name: statistics.median(r for _, r in t) for name, t in ratios.items()},
    }


def _line(result: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    seconds, ratios, cpu = (result[part] for part in ("seconds", "ratios", "cpu_ratios"))
    times = [f"{1e3 * seconds[name]:.1f}" if name in seconds else "" for name in names]
    compared = [f"{ratios[n]:.2f}, {cpu[n]:.2f}" if n in ratios else "" for n in names]
    return [str(result["rows"]), str(result["context"]), *times, *compared]


if __name__ == "__main__":
    raise SystemExit(main())
