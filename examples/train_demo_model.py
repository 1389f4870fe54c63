"""Train the demo model: a small BLOOM that tells short everyday stories.

    python examples/train_demo_model.py --output examples/demo-model

Needs no network and no data: the text comes from ``demo_text.py``.
"""

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from demo_text import stories
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

CHAT_TEMPLATE = Path(__file__).parent / "demo-model" / "chat_template.jinja"
"""Written by hand: the model has learnt no roles."""

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>"]
BOS, EOS, PAD = 1, 2, 3
ROWS, ROW_TOKENS = 32, 128
WARM_UP_STEPS = 100
PROMPT = "Today the weather is really nice and I am planning on"

PROMPTS = [
    PROMPT,
    "Today ",
    "Today the weather is",
    "Today the weather is really nice",
    "The weather",
    "It was",
    "It was raining in",
    "It was raining in the morning, so",
    "In the evening",
    "My friend Anna likes to",
]
"""Prompts of the documentation, whose replies are to be the same everywhere."""

PROMPTS_A_ROUND = 54

MARGIN = 1.5
"""By how much the logit of a token is to exceed the next one's; bfloat16 rounds logits to 1/16."""


@dataclass(frozen=True)
class Result:
    """What a training run came to."""

    first_loss: float
    last_loss: float
    held_out_loss: float
    seconds: float
    parameters: int


def train_tokenizer(seed: int, texts: int = 10_000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which can spell any text, on the stories."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.islice(stories(seed), texts), trainer)
    unk, bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        padding_side="left",
        chat_template=CHAT_TEMPLATE.read_text(),
        clean_up_tokenization_spaces=False,
    )


def make_model(vocabulary: int) -> BloomForCausalLM:
    """Make the untrained model."""
    config = BloomConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        n_layer=6,
        n_head=8,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        seq_length=512,
    )
    return BloomForCausalLM(config)


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[torch.Tensor]:
    """Give batches without end; each row begins with a story and is filled with whole ones."""
    texts = stories(seed)
    while True:
        rows = []
        for _ in range(ROWS):
            row: list[int] = []
            while len(row) < ROW_TOKENS:
                row += [*tokenizer.encode(next(texts)), EOS]
            rows.append(row[:ROW_TOKENS])
        yield torch.tensor(rows)


def rate(step: int, steps: int, peak: float = 3e-3) -> float:
    """Give the learning rate of a step: a short warm-up, then half a cosine down to zero."""
    warm_up = min(WARM_UP_STEPS, steps)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2


def loss_of(model: BloomForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Compute the mean loss of a batch, in bfloat16 where that is safe."""
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=batch, labels=batch, use_cache=False).loss


def train(
    model: BloomForCausalLM, texts: Iterator[torch.Tensor], steps: int
) -> tuple[float, float]:
    """Train a model and return the first loss and the mean of the last ones."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.05)
    losses: list[float] = []
    start = time.monotonic()
    for step, batch in enumerate(itertools.islice(texts, steps)):
        optimizer.param_groups[0]["lr"] = rate(step, steps)
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 0 or step == steps - 1:
            print(
                f"step {step:5d}  loss {losses[-1]:.4f}  {time.monotonic() - start:6.1f} s",
                flush=True,
            )
    tail = losses[-50:] if steps > 100 else losses[-1:]
    return losses[0], sum(tail) / len(tail)


def separate(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, rounds: int
) -> None:
    """Separate tokens that are about equally likely wherever the model goes on greedily.

    Else the rounding of a processor would choose among them, and tell a story of its own.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0)
    texts = stories(seed)
    for number in range(rounds):
        prompts = [*PROMPTS, *(beginning(next(texts), index) for index in range(PROMPTS_A_ROUND))]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        rows = model.generate(**inputs, max_new_tokens=100, do_sample=False)
        ahead = []
        for row, mask in zip(rows, inputs.attention_mask, strict=True):
            padding, start = int((mask == 0).sum()), int(mask.sum())
            ahead.append(leads(model, row[None, padding:], start))
            (MARGIN - ahead[-1]).clamp(min=0).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        near = float((torch.cat(ahead) < MARGIN / 2).float().mean())
        print(f"round {number:3d}  tokens with a near second {near:.4f}", flush=True)


def beginning(story: str, index: int) -> str:
    """Give some words that a story begins with."""
    return " ".join(story.split(" ")[: 1 + index % 14])


def leads(model: BloomForCausalLM, row: torch.Tensor, start: int) -> torch.Tensor:
    """Give by how much the logit of each token of a greedy reply exceeds all others."""
    logits = model(input_ids=row[:, :-1], use_cache=False).logits[0, start - 1 :].float()
    reply = row[0, start:]
    ends = (reply == EOS).nonzero()
    count = int(ends[0]) + 1 if len(ends) else len(reply)
    logits, tokens = logits[:count], reply[:count, None]
    others = logits.scatter(1, tokens, -math.inf).amax(1)
    return logits.gather(1, tokens)[:, 0] - others


@torch.no_grad()
def held_out_loss(model: BloomForCausalLM, texts: Iterator[torch.Tensor], count: int) -> float:
    """Measure the loss on stories that the model has not been trained on."""
    losses = [model(input_ids=batch, labels=batch).loss for batch in itertools.islice(texts, count)]
    return float(torch.stack(losses).float().mean())


def save(model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write the model in bfloat16 and in several shards, with its tokenizer, greedy by default."""
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=False
    )
    model.save_pretrained(output, max_shard_size="2MB")
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(output)
    for file in output.iterdir():
        file.chmod(0o644)


@torch.no_grad()
def continuation(
    model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, tokens: int
) -> str:
    """Continue a prompt greedily."""
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=tokens)
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# Demo model: a very small BLOOM

A `BloomForCausalLM` with {parameters:,} parameters that tells short everyday stories. It exists so
that the predictor can be tried and tested with a real, trained model that needs no download.

> {continuation}

| | |
|---|---|
| Architecture | BLOOM: {layers} layers, hidden size {hidden}, {heads} heads, tied embeddings |
| Parameters | {parameters:,} |
| Weights | bfloat16, {megabytes:.1f} MB in {shards} safetensors shards |
| Tokenizer | byte-level BPE, {vocabulary} tokens; spells any UTF-8 text |
| Training | {steps} steps of {rows} x {row_tokens} tokens, AdamW, seed {seed}; then {rounds} \
rounds that separate tokens that were about equally likely |
| Time | {minutes:.1f} minutes on {threads} CPU threads |
| Loss (nats per token) | {first_loss:.2f} at the start, {last_loss:.3f} at the end; \
{held_out_loss:.3f} on stories told from another seed, after rounding to bfloat16 |

## How it was made

    python examples/train_demo_model.py --output examples/demo-model

The text is made by `examples/demo_text.py`, a seeded grammar with a vocabulary of about a thousand
words; nothing is downloaded. Each story ends with `</s>`, so the model ends by itself. The seed
fixes the text, the first weights and the order of the batches; that the result is equal to the bit
on another machine or with another number of threads is not promised.

## What it cannot do

It is a toy that knows only its little world of weather, walks, gardens, kitchens and trains. Asked
about anything else, it drifts back to that world or stops making sense. It has seen at most
{row_tokens} tokens in a row; `seq_length` in the configuration is a bound, not what it was
trained for. It knows no facts and follows no instructions. Stories go on in many ways that are
about equally likely; for short beginnings of stories, one of them was made more likely than all
others, so that another type (float32) or device mostly tells the same story.

Licence: Apache-2.0.
"""


def write_card(
    model: BloomForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    result: Result,
    arguments: argparse.Namespace,
) -> None:
    """Write the model card, with the figures as they were measured."""
    shards = list(arguments.output.glob("*.safetensors"))
    card = CARD.format(
        **vars(result),
        continuation=continuation(model, tokenizer, PROMPT, 80),
        layers=model.config.n_layer,
        hidden=model.config.hidden_size,
        heads=model.config.n_head,
        vocabulary=len(tokenizer),
        megabytes=sum(shard.stat().st_size for shard in shards) / 1e6,
        shards=len(shards),
        steps=arguments.steps,
        rounds=arguments.rounds,
        seed=arguments.seed,
        rows=ROWS,
        row_tokens=ROW_TOKENS,
        minutes=result.seconds / 60,
        threads=torch.get_num_threads(),
    )
    (arguments.output / "README.md").write_text(card, encoding="utf-8")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=1500, help="training steps")
    parser.add_argument("--rounds", type=int, default=10, help="rounds that separate tokens")
    parser.add_argument("--resume", type=Path, help="folder of a model to separate the tokens of")
    parser.add_argument("--seed", type=int, default=2026, help="seed of the text and the weights")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> Result:
    """Train the model, save it and show what it says."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    start = time.monotonic()
    if arguments.resume:
        model = BloomForCausalLM.from_pretrained(arguments.resume, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.resume)
        first = last = held_out_loss(model, batches(tokenizer, arguments.seed + 1), 8)
    else:
        tokenizer = train_tokenizer(arguments.seed)
        model = make_model(len(tokenizer))
        first, last = train(model, batches(tokenizer, arguments.seed), arguments.steps)
    separate(model, tokenizer, arguments.seed + 2, arguments.rounds)
    seconds = time.monotonic() - start
    save(model, tokenizer, arguments.output)
    unseen = held_out_loss(model, batches(tokenizer, arguments.seed + 1), 8)
    result = Result(first, last, unseen, seconds, model.num_parameters())
    write_card(model, tokenizer, result, arguments)
    print(result)
    print(continuation(model, tokenizer, PROMPT, 40))
    return result


if __name__ == "__main__":
    main()
