"""Clients that users have, against the server of the demo model, in an environment of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import DEMO, KEY, CallClient, RunClient
from tests.server.process import Served

REPLY = " the morning, so I stayed at home"
LONG = f"{REPLY} and made a big pot of soup."
CITIES = ("Rome", "Oslo")


def is_weather(value: Any) -> bool:
    return set(value) == {"city", "warm"} and value["city"] in CITIES and value["warm"] in (0, 1)


def test_openai(call_client: CallClient) -> None:
    seen = call_client("openai_client")
    assert seen["chat"].startswith(LONG)
    assert is_weather(seen["parsed"])
    assert seen["streamed"] == seen["parsed"]
    assert seen["calls"]
    assert all(map(is_weather, seen["calls"]))
    assert seen["refused"] == "invalid_api_key"
    assert seen["models"] == ["demo"]


def test_langchain(call_client: CallClient) -> None:
    seen = call_client("langchain")
    assert seen["chat"].startswith(LONG)
    assert seen["stream"] == seen["chat"]
    assert REPLY.startswith(seen["completion"])
    ((name, arguments), *_) = seen["calls"]
    assert (name, arguments["city"] in CITIES) == ("get_weather", True)
    assert seen["streamed"].startswith(json.dumps(arguments))
    assert seen["after_call"]
    assert all(map(is_weather, seen["structured"].values()))
    assert seen["json_mode"]


def test_llama_index(call_client: CallClient) -> None:
    seen = call_client("llama_index")
    assert seen["chat"].startswith(LONG)
    assert seen["stream"] == seen["chat"]
    assert REPLY.startswith(seen["completion"])
    assert is_weather(seen["structured"])


def test_litellm(call_client: CallClient) -> None:
    seen = call_client("litellm")
    (chat,) = set(seen["chat"].values())
    assert chat.startswith(LONG)
    assert seen["stream"] == chat
    assert seen["usage"] == 60
    assert REPLY.startswith(seen["completion"])
    ((name, arguments), *_) = seen["calls"]
    assert (name, list(arguments)) == ("tell", ["warm"])
    assert "100000 new tokens exceed the 256 tokens" in seen["refusal"]


def test_instructor(call_client: CallClient) -> None:
    seen = call_client("instructor")
    assert all(map(is_weather, seen["whole"].values()))
    assert is_weather(seen["partial"][-1])
    assert len(seen["partial"]) > 1


def test_huggingface_hub(call_client: CallClient) -> None:
    seen = call_client("hub")
    assert REPLY.startswith(seen["text"])
    assert seen["async"] == seen["chat"] == seen["chat_stream"] == seen["text"]
    assert seen["stop"] == " the morning, so I"
    assert seen["full"] == f"It was raining in{seen['text']}"
    first, again, other = seen["sampled"]
    assert first == again != other
    assert json.loads(seen["grammar"])["warm"] in (True, False)
    reason, tokens, alternatives = seen["details"]
    assert (reason, alternatives) == ("eos_token", tokens)
    whole, ending = seen["last"]
    assert ending == "eos_token"
    assert seen["events"] == [tokens, whole]
    text, others = seen["best"]
    assert text
    assert others == 1
    assert seen["refusal"].startswith("best_of above 1 needs do_sample")


OFFLINE = {"HF_HUB_OFFLINE": "1"}
QUESTIONS = (
    {"question": "Today the weather is", "choices": [" really nice", " zzz qq"], "answer": 0},
    {"question": "It was raining in", "choices": [" xylophone", " the morning"], "answer": 1},
)
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
"""
GENERATION = """
output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: [" and", ","], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOICE = """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def evaluate(run_client: RunClient, served: Served, folder: Path, output: str) -> dict[str, float]:
    """Runs lm-evaluation-harness over the questions, and returns its numbers."""
    lines = "\n".join(map(json.dumps, QUESTIONS))
    (folder / "questions.jsonl").write_text(lines)
    (folder / "task.yaml").write_text(TASK.format(name="questions", folder=folder) + output)
    model = {
        "model": "demo",
        "base_url": f"{served.url}/v1/completions",
        "tokenizer": str(DEMO),
        "max_length": 256,
        "num_concurrent": 2,
        "max_retries": 1,
    }
    done = run_client(
        *("-m", "lm_eval", "run", "--model", "local-completions", "--tasks", "questions"),
        *("--model_args", ",".join(f"{name}={value}" for name, value in model.items())),
        *("--include_path", str(folder), "--output_path", str(folder / "results")),
        **OFFLINE,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = (folder / "results").rglob("*.json")
    numbers: dict[str, float] = json.loads(results.read_text())["results"]["questions"]
    return numbers


def test_lm_evaluation_harness_generates(
    run_client: RunClient, served: Served, tmp_path: Path
) -> None:
    assert evaluate(run_client, served, tmp_path, GENERATION)["exact_match,none"] == 1


def test_lm_evaluation_harness_compares_likelihoods(
    run_client: RunClient, served: Served, tmp_path: Path
) -> None:
    assert evaluate(run_client, served, tmp_path, CHOICE)["acc,none"] == 1


def test_guidellm_runs_a_load_to_its_end(
    run_client: RunClient, served: Served, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    done = run_client(
        *("-m", "guidellm", "benchmark", "run", "--target", served.url, "--model", "demo"),
        *("--processor", str(DEMO), "--data", "prompt_tokens=16,output_tokens=8"),
        *("--rate-type", "concurrent", "--rate", "2", "--max-requests", "6"),
        *("--output-path", str(report), "--disable-progress"),
        GUIDELLM__OPENAI__API_KEY=KEY,
        **OFFLINE,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["request_totals"]
    assert (totals["successful"], totals["errored"]) == (6, 0)
    mean = benchmark["metrics"]["output_token_count"]["successful"]["mean"]
    assert mean == pytest.approx(8)
