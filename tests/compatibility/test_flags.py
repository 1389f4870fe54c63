"""The flags of KServe's Hugging Face server and of vLLM: each works, warns or is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from kserve import model_server

from predictor.cli import parse_arguments
from predictor.compatibility import shared_flags
from predictor.compatibility.apply import FLAGS, SERVERS, log_variables
from predictor.compatibility.kserve_flags import KSERVE_FLAGS, KSERVE_VARIABLES
from predictor.compatibility.shared_flags import SHARED
from predictor.compatibility.vllm_flags import VLLM_FLAGS
from predictor.errors import ConfigurationError
from predictor.settings import Settings, names, read_settings
from predictor.settings_sources import ALIASES
from predictor.settings_sources import VARIABLES as SETTING_VARIABLES
from tests.compatibility.vllm_names import NEWEST, OLDER

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


@pytest.fixture(autouse=True)
def _no_model_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_flags, "_MOUNTED", tmp_path / "models")


@pytest.mark.parametrize("name", sorted({*HUGGINGFACESERVER, *MODEL_SERVER}))
def test_every_flag_of_kserve_is_a_setting_or_in_the_table(name: str) -> None:
    assert name in names() or name in FLAGS


def test_every_flag_of_vllm_is_a_setting_or_in_the_table() -> None:
    assert not {*NEWEST.split(), *OLDER.split()} - {*names(), *FLAGS}


def test_the_table_has_no_flag_twice() -> None:
    assert not KSERVE_FLAGS.keys() & VLLM_FLAGS.keys()
    shorts = [short for flag in FLAGS.values() for short in flag.short]
    assert len(shorts) == len(set(shorts))


@pytest.mark.parametrize("name", sorted({*KSERVE_FLAGS, *VLLM_FLAGS}))
def test_a_flag_sets_settings_or_says_why_it_does_not(name: str) -> None:
    flag = {**VLLM_FLAGS, **KSERVE_FLAGS}[name]
    assert set(flag.settings) <= set(Settings.model_fields)
    assert flag.settings or flag.reason
    assert (flag.accepted is None) == (not flag.instead)


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_a_flag_is_accepted_or_refused_by_its_sentence_and_takes_no_other_word(name: str) -> None:
    flag, dashed = FLAGS[name], name.replace("_", "-")
    lines = [f"--{dashed}=7", f"--{dashed} 7", *(f"-{short} 7" for short in flag.short)]
    if flag.is_switch:
        lines = [f"--{dashed}", f"--no-{dashed}", f"--{dashed}=true", f"--{dashed} false"]
        lines += [f"-{short}" for short in flag.short]
    for line in lines:
        words = ["serve", *line.split(), "--model-dir=/m"]
        if flag.count is None:  # as in `serve --enforce-eager org/gpt`
            words[-1:] = ["/m"]
        settings, refusal = _settings_or_refusal(words)
        if refusal:
            assert refusal.startswith(f"--{name}")
            assert (flag.instead and flag.instead in refusal) or "is no JSON object" in refusal
        else:
            assert settings.pop("model_dir") == "/m"
            assert settings.keys() <= set(flag.settings)


def _settings_or_refusal(words: list[str]) -> tuple[dict[str, Any], str]:
    try:
        return parse_arguments(words)[1], ""
    except ConfigurationError as error:
        return {}, str(error)


@pytest.mark.parametrize("name", sorted(name for name, flag in FLAGS.items() if flag.accepted))
def test_the_accepted_values_of_a_flag_are_accepted(name: str) -> None:
    for value in FLAGS[name].accepted or ():
        assert FLAGS[name].apply(name, (value,)).keys() <= set(FLAGS[name].settings)


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
        (
            "serve --spec-model /mnt/tiny --spec-method draft_model",
            {"draft_model_dir": "/mnt/tiny"},
        ),
        (
            "serve --speculative-config.method ngram --speculative-config.num_speculative_tokens=4",
            {"prompt_lookup_num_tokens": "4"},
        ),
        (
            "serve --override-generation-config.temperature 0.5 org/gpt",
            {"model_id": "org/gpt", "override_generation_config": '{"temperature": 0.5}'},
        ),
        ("serve -O3", {}),
        ("serve -O 3 -cc.mode=3 -O.pass_config.fuse=true -tp 2 -ep -q=awq", {}),
        ("serve --tensor-parallel-size 2 org/gpt", {"model_id": "org/gpt"}),
        ("serve --enforce-eager org/gpt", {"model_id": "org/gpt"}),
        (
            "serve --trust-remote-code org/gpt --no-enable-prefix-caching",
            {"trust_remote_code": "true", "model_id": "org/gpt", "prefix_cache": "false"},
        ),
        ("serve --enable_grpc false --hf-token", {"enable_grpc": "false"}),
        ("serve --device cpu", {"device_map": "cpu"}),
        ("serve --device cuda", {}),
        ("serve --convert embed --runner pooling", {"task": "text_embedding"}),
        ("serve --runner pooling --convert embed", {"task": "text_embedding"}),
        ("serve --runner pooling --task rerank", {"task": "rerank"}),
        ("serve --runner pooling --convert auto", {"task": "pooling"}),
        ("serve --disable-uvicorn-access-log", {"access_log": "false"}),
        ("serve --no-disable-uvicorn-access-log", {"access_log": "true"}),
        ("serve --shutdown-timeout 30", {"grace_period": "30"}),
        ("serve --h11-max-header-count 200", {"max_header_count": "200"}),
        ('serve --structured-outputs-config {"backend":"xgrammar"}', {}),
        (
            'serve --structured-outputs-config {"reasoning_parser":"qwen3"}',
            {"reasoning_parser": "qwen3"},
        ),
        ("serve m/m --api-key a b", {"model_id": "m/m", "api_key": ["a", "b"]}),
        ("serve --api-key a,b", {"api_key": "a,b"}),
        ("serve --quantization None --chat-template None --served-model-name None", {}),
        (
            "serve --revision None --max-model-len None --ssl-keyfile None --dtype half",
            {"dtype": "half"},
        ),
        ("serve --allowed-origins None --lora-modules None --task None", {}),
        ("serve --tool-call-parser None --reasoning-parser None --trust-remote-code None", {}),
        ("serve --override-generation-config None --host None --dtype None", {}),
        ("serve --reasoning-parser= --tool-call-parser= --revision= --max-model-len=", {}),
        ("serve m/x --enable-prefix-caching None", {"model_id": "m/x"}),
        ("serve -ep None --enable-prefix-caching None m/x", {"model_id": "m/x"}),
        ("serve --no-trust-remote-code m/x", {"trust_remote_code": "false", "model_id": "m/x"}),
        (
            "serve --no-enable-grpc --no_access_log",
            {"enable_grpc": "false", "access_log": "false"},
        ),
        (
            'serve --speculative-config {"method":"ngram"} -sc.num_speculative_tokens 4',
            {"prompt_lookup_num_tokens": "4"},
        ),
        (
            "serve --override-generation-config.top_k=2 "
            '--override-generation-config={"top_k":9,"top_p":0.5}',
            {"override_generation_config": '{"top_k": 2, "top_p": 0.5}'},
        ),
        (
            "serve --override-generation-config.top_k=2 --override-generation-config None",
            {"override_generation_config": '{"top_k": 2}'},
        ),
        ("serve --max-memory.cpu 30GiB", {"max_memory": '{"cpu": "30GiB"}'}),
        ("serve --cudagraph-capture-sizes 1 2 4 --kv-cache-dtype-skip-layers 0 1", {}),
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
        ("serve --hf-token hf_secret", "--hf_token is not supported: set HF_TOKEN"),
        ("serve --spec-method eagle3", "--spec_method=eagle3 is not supported: drafts are looked"),
        *(
            (
                f'serve --speculative-config {{"method":"{method}","model":"a/b"}}',
                f"--speculative_config with the method '{method}' is not supported: drafts are lo",
            )
            for method in ("eagle3", "mtp", "suffix")
        ),
        (
            'serve --speculative-config {"method":"draft_model"}',
            "--speculative_config with the method 'draft_model' has no model",
        ),
        (
            "serve --speculative-config ngram --speculative-config.num_speculative_tokens 3",
            "--speculative_config is no JSON object",
        ),
        ("serve --version.x 1", "Unknown flag --version.x"),
        ("serve -n.x 3", "--nnodes=.x is not supported: a model is served by one pod"),
        ("serve --convert reward", "--convert=reward is not supported: models of rewards"),
        ("serve --device=tpu", "--device=tpu is not supported: set --device_map"),
        (
            "serve --enforce-eager=org/gpt",
            "--enforce_eager is a switch, and has no value 'org/gpt'",
        ),
        ("serve --headless", "--headless is not supported: a model is served by one pod"),
        (
            "serve --api-key a /mnt/m",
            "--api_key takes all words that follow it: name the model bef",
        ),
        (
            'serve --structured-outputs-config {"enable_in_reasoning":true}',
            "--structured_outputs_config with 'enable_in_reasoning' is not supported: schemas",
        ),
    ],
)
def test_a_refused_flag_says_what_to_do_instead(line: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        parse_arguments(line.split())
    assert str(refusal.value).startswith(sentence)
    assert str(refusal.value).endswith(".")


@pytest.mark.parametrize("name", ["tokenizer_revision", "code_revision"])
def test_another_revision_is_accepted_if_it_is_the_models_own(name: str) -> None:
    for other in ("--model_revision=v2", "--revision=v2"):
        _, flags = parse_arguments(["--model_id=org/gpt", other, f"--{name}=v2"])
        assert flags == {"model_id": "org/gpt", "model_revision": "v2"}
    for others in (["--model_revision=v1"], [], ["--model_dir=v2"]):
        with pytest.raises(ConfigurationError, match=f"^--{name}=v2 is not supported: "):
            parse_arguments(["serve", *others, f"--{name}=v2"])


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [
        ("--max-model-len=32k", "max_model_len", 32_000),
        ("--max-model-len=32K", "max_model_len", 32_768),
        ("--max-model-len=25.6k", "max_model_len", 25_600),
        ("--max-num-batched-tokens=2K", "prefill_chunk", 2048),
        ("--max-num-batched-tokens=2K", "max_batch_tokens", 2048),
        ("--dtype=half", "dtype", "float16"),
        ("--dtype=float", "dtype", "float32"),
        ("--dtype=auto", "dtype", "auto"),
        ("--revision=main", "model_revision", "main"),
        ("--task=embed", "task", "text_embedding"),
        ("--task=classify", "task", "sequence_classification"),
        ("--task=score", "task", "rerank"),
        ("--task=generate", "task", None),
        ("--task=auto", "task", None),
        ('--allowed-origins=["*"]', "allowed_origins", ("*",)),
        ('--api-key=["a","b"]', "api_key", ("a", "b")),
        ("--reasoning-parser=deepseek_r1", "reasoning_parser", "deepseek_r1"),
        ("--reasoning-parser=kimi_k2", "reasoning_parser", "think"),
        ("--reasoning-parser=openai_gptoss", "reasoning_parser", "auto"),
        ("--tool-call-parser=qwen3_xml", "tool_call_parser", "qwen3_xml"),
        ('--override-generation-config={"top_k":2}', "override_generation_config", {"top_k": 2}),
        ("--lora-modules a=b c=d", "lora_modules", {"a": "b", "c": "d"}),
        ("--lora-modules a=b,c=d", "lora_modules", {"a": "b", "c": "d"}),
        ('--lora-modules {"name":"a","path":"b"} c=d', "lora_modules", {"a": "b", "c": "d"}),
        ('--lora-modules [{"name":"a","path":"b"}]', "lora_modules", {"a": "b"}),
        ("--uvicorn-log-level=warning", "log_level", "info"),
    ],
)
def test_vllms_values_of_our_settings_are_understood(flag: str, name: str, value: object) -> None:
    _, flags = parse_arguments(["serve", *flag.split()])
    assert getattr(read_settings(flags, environ={}), name) == value


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--max-model-len=auto", "max_model_len: is not fitted to the memory; leave it out"),
        ("--max-model-len=-1", "max_model_len: is not fitted to the memory; leave it out"),
        ("--max-model-len=long", "max_model_len: Input should be a valid integer"),
        ("--tool-call-parser=pythonic", "tool_call_parser: must be one of auto, none, deepseek"),
        ("--reasoning-parser=granite", "reasoning_parser: must be one of auto, none, deepseek"),
        ("--task=transcription", "task: Input should be 'text_generation', "),
        ("--lora-modules=ab", "lora_modules: must be pairs such as name=path"),
    ],
)
def test_values_that_are_not_served_are_refused_by_a_sentence(flag: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        read_settings(parse_arguments(["serve", flag])[1], environ={})
    assert str(refusal.value).startswith(sentence)


def test_an_unknown_flag_says_whose_flags_there_are() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        parse_arguments(["serve", "--zzz"])
    assert str(refusal.value) == f"Unknown flag --zzz. {SERVERS}"
    with pytest.raises(ConfigurationError, match=r"did you mean --tensor_parallel_size\?$"):
        parse_arguments(["serve", "--tensor-paralel-size", "2"])
    with pytest.raises(ConfigurationError, match=r"^Unknown flag --zzz\.$"):
        parse_arguments(["import-torchserve", "a.mar", "--into", "b", "--zzz"])


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
        parse_arguments(["--speculative-config", '{"method":"ngram"}'])
        parse_arguments(["--speculative-config", '{"num_speculative_tokens":5}'])
        parse_arguments(["--served-model-name", "gpt"])
    assert [record.getMessage() for record in caplog.records] == [
        "--speculative_config changes nothing: `ngram`, whose lookups compare 2 to 5 tokens, and "
        "`draft_model` are the methods here",
        "--speculative_config sets --prompt_lookup_num_tokens",
        "--served_model_name sets --model_name",
    ]


@pytest.mark.parametrize("word", ["None", ""])
def test_a_flag_without_a_value_is_no_line_in_the_log(
    word: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="predictor.compatibility"):
        for name in FLAGS:
            assert parse_arguments([f"--{name}={word}"]) == ("serve", {})
    assert not caplog.records


def test_the_settings_that_vllm_has_too_are_listed() -> None:
    theirs = {*NEWEST.split(), *OLDER.split()} & set(names())
    assert {ALIASES.get(name, name) for name in theirs} == SHARED


@pytest.mark.parametrize(
    "environ", [{"PREDICTOR_MODEL_ID": "m/m"}, {"PREDICTOR_MODEL_URI": "s3://bucket/m"}]
)
def test_several_keys_may_follow_if_the_environment_names_the_model(
    environ: dict[str, str],
) -> None:
    words = ["serve", "--api-key", "a", "b"]
    assert parse_arguments(words, environ=environ)[1] == {"api_key": ["a", "b"]}
    with pytest.raises(ConfigurationError, match=r"^--api_key takes all words that follow it"):
        parse_arguments(words, environ=dict.fromkeys(environ, ""))


def test_several_keys_may_follow_if_a_model_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_flags, "_MOUNTED", tmp_path)
    words = ["serve", "--api-key", "a", "b"]
    assert parse_arguments(words, environ={})[1] == {"api_key": ["a", "b"]}
    with pytest.raises(ConfigurationError, match=r"^--api_key takes all words that follow it"):
        parse_arguments([*words, str(tmp_path)], environ={})


def test_variables_are_in_one_table() -> None:
    assert not SETTING_VARIABLES.keys() & KSERVE_VARIABLES.keys()
    assert set(SETTING_VARIABLES.values()) <= set(Settings.model_fields)


@pytest.mark.parametrize(
    ("line", "environ"),
    [
        ("serve --api-key None", {}),
        ("serve m/x --api-key None b", {}),
        ("serve --api-key a --api-key None", {}),
        ('serve --api-key ["a","None"]', {}),
        ("serve m/x", {"PREDICTOR_API_KEY": "None"}),
        ("serve m/x", {"VLLM_API_KEY": "None"}),
    ],
)
def test_none_is_no_key_wherever_it_is_from(line: str, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"^api_key is None, which is no key"):
        read_settings(parse_arguments(line.split(), environ=environ)[1], environ=environ)
