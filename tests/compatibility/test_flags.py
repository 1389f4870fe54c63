"""The flags of KServe's Hugging Face server and of vLLM: each works, warns or is refused."""

from __future__ import annotations

import logging

import pytest
from kserve import model_server

from predictor.cli import parse_arguments
from predictor.compatibility.apply import FLAGS, log_variables
from predictor.compatibility.kserve_flags import KSERVE_FLAGS, KSERVE_VARIABLES
from predictor.compatibility.vllm_flags import VLLM_FLAGS
from predictor.errors import ConfigurationError
from predictor.settings import Settings, names
from predictor.settings_sources import VARIABLES as SETTING_VARIABLES

HUGGINGFACESERVER = [
    *("model_dir", "model_id", "model_revision", "tokenizer_revision", "max_length"),
    *("max_model_len", "disable_lower_case", "disable_special_tokens", "trust_remote_code"),
    *("tensor_input_names", "task", "backend", "return_token_type_ids", "return_probabilities"),
    *("return_raw_logits", "return_offsets_mapping", "disable_log_requests", "max_log_len"),
    "dtype",
]
MODEL_SERVER = [
    option.removeprefix("--").replace("-", "_")
    for action in model_server.parser._actions
    for option in action.option_strings
]


@pytest.mark.parametrize("name", sorted({*HUGGINGFACESERVER, *MODEL_SERVER}))
def test_every_flag_of_kserve_is_a_setting_or_in_the_table(name: str) -> None:
    assert name in names() or name in FLAGS


@pytest.mark.parametrize("name", sorted({*KSERVE_FLAGS, *VLLM_FLAGS}))
def test_a_flag_sets_settings_or_says_why_it_does_not(name: str) -> None:
    flag = {**VLLM_FLAGS, **KSERVE_FLAGS}[name]
    assert set(flag.settings) <= set(Settings.model_fields)
    assert flag.settings or flag.reason
    assert (flag.accepted is None) == (not flag.instead)


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("serve --max-num-seqs 8", {"max_batch_size": "8"}),
        (
            "serve --max-num-batched-tokens=9000",
            {"prefill_chunk": "9000", "max_batch_tokens": "9000"},
        ),
        ("serve --gpu-memory-utilization 0.9", {"gpu_fraction": "0.9"}),
        ("serve --served-model-name gpt", {"model_name": "gpt"}),
        (
            "serve --served-model-name org/gpt gpt big",
            {"model_name": "gpt", "model_aliases": "org/gpt,big"},
        ),
        ("serve --served-model-name org/gpt", {"model_name": "gpt", "model_aliases": "org/gpt"}),
        ("serve --model org/gpt", {"model_id": "org/gpt"}),
        ("serve org/gpt --dtype=half", {"model_id": "org/gpt", "dtype": "half"}),
        ("serve /mnt/models", {"model_dir": "/mnt/models"}),
        ("serve s3://bucket/gpt --load-format runai_streamer", {"model_uri": "s3://bucket/gpt"}),
        ("serve --port 9000 --port 9001", {"http_port": "9001"}),
        ("serve --max-num-seqs 8 --max_batch_size 9", {"max_batch_size": "9"}),
        ("serve --grpc_max_receive_message_length=100", {"max_body_size": "100"}),
        ("--model_name=x --backend=huggingface", {"model_name": "x"}),
        ("--model_name x --workers 1 --enable_grpc", {"model_name": "x", "enable_grpc": "true"}),
        ("serve --quantization awq -tp 2", {}),
        ("serve --enable-lora --max-lora-rank 64 --enforce-eager", {}),
        ("serve --lora-modules a=b c=d", {"lora_modules": ["a=b", "c=d"]}),
        ("serve --load-format auto --seed 3", {}),
        ("serve --disable_special_tokens", {"disable_special_tokens": "true"}),
        ("serve --no-enable-prefix-caching", {"prefix_cache": "false"}),
        (
            'serve --speculative-config {"method":"ngram","num_speculative_tokens":5}',
            {"prompt_lookup_num_tokens": "5"},
        ),
        ('serve --speculative-config {"method":"eagle","num_speculative_tokens":5}', {}),
        ('serve --speculative-config {"method":"eagle","model":"a/b"}', {}),
        (
            'serve --speculative-config {"model":"org/tiny","num_speculative_tokens":5}',
            {"draft_model_dir": "org/tiny", "draft_model_num_tokens": "5"},
        ),
        (
            'serve --speculative-config {"method":"draft_model","model":"/mnt/tiny"}',
            {"draft_model_dir": "/mnt/tiny"},
        ),
        ('serve --speculative-config {"method":null,"model":"a/b"}', {"draft_model_dir": "a/b"}),
        (
            'serve --speculative-config {"model":"[ngram]","num_speculative_tokens":5}',
            {"prompt_lookup_num_tokens": "5"},
        ),
        (
            "serve --speculative-model /mnt/tiny --num-speculative-tokens 5",
            {
                "draft_model_dir": "/mnt/tiny",
                "draft_model_num_tokens": "5",
                "prompt_lookup_num_tokens": "5",
            },
        ),
        ("serve --speculative-model [ngram]", {}),
    ],
)
def test_a_flag_becomes_settings(line: str, settings: dict[str, str]) -> None:
    assert parse_arguments(line.split()) == ("serve", settings)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--backend=vllm", "--backend=vllm is not supported: this server has one backend"),
        ("--backend vllm", "--backend=vllm is not supported: this server has one backend"),
        ("--workers=2", "--workers=2 is not supported: each worker would hold the model once"),
        ("serve --quantization fp8", "--quantization=fp8 is not supported: --weights_dtype int8"),
        ("serve --predictor_host x:1", "--predictor_host=x:1 is not supported: it is for transf"),
        ("plan /m --data-parallel-size 2", "--data_parallel_size=2 is not supported: run more re"),
        ("serve --speculative-config ngram", "--speculative_config is no JSON object"),
        ("serve --chat-template x.jinja", "--chat_template=x.jinja is not supported: put it into"),
    ],
)
def test_a_refused_flag_says_what_to_do_instead(line: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        parse_arguments(line.split())
    assert str(refusal.value).startswith(sentence)
    assert str(refusal.value).endswith(".")


def test_a_flag_that_changes_nothing_is_one_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="predictor.compatibility"):
        parse_arguments(["--max_log_len=3", "--tensor-parallel-size=2", "--max-num-seqs=4"])
        log_variables({"CE_MERGE": "true", "PATH": "/bin"})
    lines = sorted(record.getMessage() for record in caplog.records)
    assert lines[0] == "--max_log_len changes nothing: prompts are never logged"
    assert lines[1] == "--max_num_seqs sets --max_batch_size"
    assert lines[2].startswith("--tensor_parallel_size changes nothing: blocks are placed over")
    assert lines[3].startswith("CE_MERGE changes nothing: ")


def test_a_flag_that_sets_nothing_with_its_value_does_not_say_that_it_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="predictor.compatibility"):
        parse_arguments(["--speculative-config", '{"method":"eagle","num_speculative_tokens":5}'])
        parse_arguments(["--speculative-config", '{"num_speculative_tokens":5}'])
        parse_arguments(["--served-model-name", "gpt"])
    assert [record.getMessage() for record in caplog.records] == [
        "--speculative_config changes nothing: `ngram`, whose lookups compare 2 to 5 tokens, and "
        "`draft_model` are the methods here",
        "--speculative_config sets --prompt_lookup_num_tokens",
        "--served_model_name sets --model_name",
    ]


def test_variables_are_in_one_table() -> None:
    assert not SETTING_VARIABLES.keys() & KSERVE_VARIABLES.keys()
    assert set(SETTING_VARIABLES.values()) <= set(Settings.model_fields)
