"""The mapping of each key: every row of one example, and a row for every known key."""

from __future__ import annotations

import json
from typing import Any

import pytest

from predictor.errors import ArchiveError
from predictor.migration.handler import Handler, HandlerClass
from predictor.migration.mapping import Row
from predictor.migration.torchserve_archive import TorchServeArchive
from predictor.migration.translate import Translation, translate
from predictor.settings import read_settings
from tests.migration.packing import SEED

MODEL = {"modelName": "bloom", "modelVersion": "1.0", "handler": "custom_handler.py"}


def source_of(**fields: Any) -> TorchServeArchive:
    model = {**MODEL, **fields.pop("model", {})}
    manifest = {"runtime": "python", "model": model}
    fields.setdefault("config_file", "model-config.yaml")
    return TorchServeArchive("bloom.mar", manifest, model, **fields)


def row_of(translation: Translation, key: str, file: str | None = None) -> Row:
    (row,) = [one for one in translation.rows if one.key == key and file in (None, one.file)]
    return row


def extra_settings(**fields: Any) -> dict[str, Any]:
    """Return the new ``setup_config.json`` without the keys that are always in it."""
    setup_config = translate(source_of(**fields)).setup_config
    always = {"torchserve_api": True, "model_name": "bloom", "model_version": "1.0"}
    assert setup_config.items() >= always.items()
    return {key: value for key, value in setup_config.items() if key not in always}


RICH = source_of(
    config={
        "minWorkers": 1,
        "batchSize": 4,
        "maxBatchDelay": 100,
        "deviceType": "gpu",
        "parallelType": "pp",
        "torchrun": {"nproc-per-node": 4},
        "handler": {"manual_seed": 40, "hf_token": "hf_geheim"},
        "pippy": {"chunks": 1},
        "mine": [1, 2],
    },
    setup={**SEED, "use_auth_token": "geheim", "do_lower_case": True},
    properties={
        "job_queue_size": "10",
        "default_response_timeout": "6000",
        "keystore_pass": "changeit",
        "vmargs": "-Dpassword=geheim",
    },
    entry={"marName": "bloom.mar", "batchSize": 2, "responseTimeout": 120},
    other_models=("other",),
    handler=Handler(
        "custom_handler.py",
        "custom_handler.py",
        classes=(HandlerClass("Mine", ("BaseHandler",), ("inference",)),),
        trusts_remote_code=True,
    ),
)

MANIFEST, CONFIG, SETUP = "MAR-INF/MANIFEST.json", "model-config.yaml", "setup_config.json"
PROPERTIES, ENTRY, CODE = "config.properties", "config.properties: snapshot", "custom_handler.py"
KEPT, CHANGED, DROPPED = "taken over", "done otherwise", "no counterpart"
NAMED = "the setting of this name"


def test_the_rows_of_a_rich_example() -> None:
    assert [
        tuple(getattr(row, name) for name in Row.__slots__) for row in translate(RICH).rows
    ] == [
        (MANIFEST, "runtime", "python", CHANGED, "Python, in the predictor's own process"),
        (MANIFEST, "model.modelName", "bloom", KEPT, "`model_name`"),
        (MANIFEST, "model.modelVersion", "1.0", KEPT, "`model_version`"),
        (
            *(MANIFEST, "model.handler", "custom_handler.py", DROPPED),
            "custom_handler.py is parsed for this report, never executed",
        ),
        (
            *(PROPERTIES, "job_queue_size", "10", KEPT),
            "`max_requests` 74: the queue and the 64 that may run",
        ),
        (
            *(PROPERTIES, "default_response_timeout", "6000", CHANGED),
            "the model's own responseTimeout is stronger",
        ),
        (
            *(PROPERTIES, "keystore_pass", "(not shown)", DROPPED),
            "TLS ends at the cluster's gateway, or here with `--ssl_certfile`",
        ),
        (PROPERTIES, "vmargs", "(not shown)", DROPPED, "no Java runs here"),
        (
            *(CONFIG, "minWorkers", "1", CHANGED),
            "one process and one copy of the weights serve all requests; more pods: `replicas`",
        ),
        (CONFIG, "batchSize", "4", CHANGED, "config.properties: snapshot is stronger"),
        (
            *(CONFIG, "maxBatchDelay", "100", CHANGED),
            "nobody waits for a batch to fill; requests join at every token",
        ),
        (CONFIG, "deviceType", "gpu", KEPT, "4 GPUs asked for; Kubernetes chooses which"),
        (
            *(CONFIG, "parallelType", "pp", CHANGED),
            "`device_map` balanced: whole blocks on each GPU, one after the other",
        ),
        (
            *(CONFIG, "torchrun.nproc-per-node", "4", KEPT),
            "4 GPUs asked for; Kubernetes chooses which",
        ),
        (
            *(CONFIG, "handler.manual_seed", "40", CHANGED),
            "a request says `seed`; others are sampled anew",
        ),
        (CONFIG, "handler.hf_token", "(not shown)", DROPPED, "not a key that is known here"),
        (
            *(CONFIG, "pippy.chunks", "1", CHANGED),
            "the plan puts whole blocks on each GPU; nothing is cut into chunks",
        ),
        (CONFIG, "mine", "[1, 2]", DROPPED, "not a key that is known here"),
        (ENTRY, "marName", "bloom.mar", KEPT, "this archive"),
        (
            *(ENTRY, "batchSize", "2", CHANGED),
            "requests join the running batch at every token, up to 64 as memory is planned for",
        ),
        (
            *(ENTRY, "responseTimeout", "120", KEPT),
            "`request_timeout` 120 s, and `kserve.timeout`; the request alone is given up (504), "
            "nothing is started again",
        ),
        (SETUP, "revision", "main", KEPT, "`model_revision`"),
        (SETUP, "max_memory", '{"0": "10GB", "cpu": "10GB"}', KEPT, NAMED),
        (SETUP, "low_cpu_mem_usage", "true", KEPT, "always so"),
        (SETUP, "device_map", "auto", KEPT, NAMED),
        (SETUP, "offload_folder", "offload", KEPT, f"{NAMED}; in a pod a volume, at /offload"),
        (SETUP, "offload_state_dict", "true", KEPT, "always so"),
        (SETUP, "torch_dtype", "float32", KEPT, "`dtype`"),
        (SETUP, "max_length", "80", KEPT, NAMED),
        (SETUP, "use_auth_token", "(not shown)", DROPPED, "not a key that is known here"),
        (SETUP, "do_lower_case", "true", DROPPED, "not a key that is known here"),
        (
            *(CODE, "Mine", "of BaseHandler", DROPPED),
            "overrides inference; its code is not executed",
        ),
        (
            *(CODE, "inference", "in Mine", CHANGED),
            "the model's own generate loop; a request says how to sample; `torchserve_semantics` "
            "does as the Accelerate example did",
        ),
        (
            *(CODE, "trust_remote_code", "true", DROPPED),
            "say `--trust_remote_code` yourself if you trust the model's author",
        ),
    ]


def test_the_setup_config_of_a_rich_example() -> None:
    translation = translate(RICH)

    assert translation.setup_config == {
        "torchserve_api": True,
        "torchserve_semantics": True,
        "model_name": "bloom",
        "model_version": "1.0",
        "max_requests": 74,
        "request_timeout": 120,
        **SEED,
    }
    assert (translation.name, translation.gpus) == ("bloom", 4)
    assert "override_generation_config" not in translation.setup_config
    read_settings({**translation.setup_config, "model_dir": "/dev/null"}, environ={})


FRONTEND: dict[str, Any] = {
    **dict.fromkeys(("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay"), 2),
    **dict.fromkeys(("responseTimeout", "startupTimeout", "parallelLevel"), 2),
    **dict.fromkeys(("maxRetryTimeoutInSec", "clientTimeoutInMills", "jobQueueSize"), 2),
    **dict.fromkeys(("sequenceMaxIdleMSec", "sequenceTimeoutMSec"), 2),
    **dict.fromkeys(("maxSequenceJobQueueSize", "maxNumSequence"), 2),
    "deviceType": "gpu",
    "parallelType": "tp",
    "deviceIds": [0, 1],
    **dict.fromkeys(("useJobTicket", "continuousBatching", "sequenceBatching"), True),
    **dict.fromkeys(("asyncCommunication", "useVenv"), True),
}
"""Every key of TorchServe's documentation of ``model-config.yaml``."""

TORCHRUN = (
    *("nnodes", "nproc-per-node", "rdzv-backend", "rdzv-endpoint", "rdzv-conf"),
    *("monitor-interval", "node-rank", "OMP_NUMBER_THREADS"),
)
HANDLER = (
    *("model_name", "model_path", "max_length", "max_new_tokens", "manual_seed", "dtype"),
    *("temperature", "top_p", "top_k", "do_sample", "mode", "batch_size", "return_full_text"),
    *("quantization", "tensor_parallel", "index_filename", "vllm_engine_config", "adapters"),
    *("chat_template", "tokenizer_dir", "engine_dir", "kv_cache_config", "repetition_penalty"),
)
PROPERTY_KEYS = (
    *("job_queue_size", "default_response_timeout", "default_startup_timeout", "number_of_gpu"),
    *("default_workers_per_model", "max_request_size", "max_response_size", "inference_address"),
    *("management_address", "metrics_address", "grpc_inference_port", "grpc_management_port"),
    *("load_models", "model_store", "models", "model_snapshot", "install_py_dep_per_model"),
    *("enable_envvars_config", "enable_metrics_api", "metrics_mode", "metrics_config"),
    *("disable_token_authorization", "cors_allowed_origin", "cors_allowed_methods"),
    *("cors_allowed_headers", "keystore", "keystore_pass", "keystore_type", "private_key_file"),
    *("certificate_file", "vmargs", "number_of_netty_threads", "netty_client_threads"),
    *("service_envelope", "blacklist_env_vars", "allowed_urls", "decode_input_request"),
    *("prefer_direct_buffer", "NUM_WORKERS", "unregister_model_timeout", "plugins_path"),
)


@pytest.mark.parametrize("key", FRONTEND)
def test_every_frontend_key_has_a_row_in_both_files(key: str) -> None:
    value = FRONTEND[key]
    for fields in ({"config": {key: value}}, {"entry": {key: value}}):
        row = row_of(translate(source_of(**fields)), key)

        assert "not a key that is known" not in row.explanation
        assert "ignored" not in row.explanation


@pytest.mark.parametrize("key", FRONTEND)
@pytest.mark.parametrize("value", ["x", None, 1.5, {}])
def test_a_value_of_the_wrong_type_is_ignored_as_it_was(key: str, value: Any) -> None:
    if isinstance(FRONTEND[key], str) and isinstance(value, str):
        value = 7
    row = row_of(translate(source_of(config={key: value})), key)

    assert row.explanation == "TorchServe ignored it too: not what this key takes"
    assert extra_settings(config={key: value}) == {}


@pytest.mark.parametrize("key", TORCHRUN)
def test_every_key_of_torchrun_has_a_row(key: str) -> None:
    row = row_of(translate(source_of(config={"torchrun": {key: 1}})), f"torchrun.{key}")

    assert "not a key that is known" not in row.explanation


@pytest.mark.parametrize("key", [key for key in HANDLER if key not in ("task", "task_name")])
@pytest.mark.parametrize("value", [1, "x", None, [], {}, True, 1.5])
def test_every_key_of_the_handlers_section_has_a_row_for_any_value(key: str, value: Any) -> None:
    row = row_of(translate(source_of(config={"handler": {key: value}})), f"handler.{key}")

    assert "not a key that is known" not in row.explanation


@pytest.mark.parametrize("section", ["pippy", "deepspeed", "micro_batching", "pt2"])
def test_every_key_of_another_section_has_a_row(section: str) -> None:
    translation = translate(source_of(config={section: {"a": 1, "b": 2}}))

    assert (
        row_of(translation, f"{section}.a").explanation
        == row_of(translation, f"{section}.b").explanation
    )
    assert "not a key that is known" not in row_of(translation, f"{section}.a").explanation
    assert row_of(translate(source_of(config={section: 1})), section).value == "1"


@pytest.mark.parametrize("key", PROPERTY_KEYS)
@pytest.mark.parametrize("value", ["1", "x", ""])
def test_every_key_of_the_servers_configuration_has_a_row(key: str, value: str) -> None:
    row = row_of(translate(source_of(properties={key: value})), key)

    assert "not a key that is known" not in row.explanation


@pytest.mark.parametrize("value", [1, "x", None, [], {}])
def test_unknown_keys_have_a_row_too(value: Any) -> None:
    source = source_of(
        config={"new": value, "handler": {"new": value}},
        setup={"new": value},
        properties={"new": str(value)},
        entry={"new": value},
        model={"new": value},
    )
    rows = [row for row in translate(source).rows if row.key.endswith("new")]

    assert len(rows) == 6
    assert {row.outcome for row in rows} == {"no counterpart"}


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"config": {"batchSize": 1}}, {}),
        ({"config": {"batchSize": 64}}, {}),
        ({"config": {"batchSize": 65}}, {"max_batch_size": 65}),
        ({"config": {"batchSize": 20, "maxWorkers": 5}}, {"max_batch_size": 100}),
        ({"config": {"batchSize": 4000}}, {"max_batch_size": 1024}),
        ({"config": {"responseTimeout": 30}}, {"request_timeout": 30}),
        ({"config": {"responseTimeout": 0}}, {}),
        ({"properties": {"default_response_timeout": "60"}}, {"request_timeout": 60}),
        ({"properties": {"default_response_timeout": "soon"}}, {}),
        ({"properties": {"job_queue_size": "10"}}, {"max_requests": 74}),
        ({"config": {"jobQueueSize": 10}}, {"max_requests": 74}),
        (
            {"config": {"jobQueueSize": 10}, "properties": {"job_queue_size": "5"}},
            {"max_requests": 74},
        ),
        (
            {"entry": {"batchSize": 80}, "properties": {"job_queue_size": "5"}},
            {"max_batch_size": 80, "max_requests": 85},
        ),
        ({"entry": {"batchSize": 3}, "config": {"batchSize": 80}}, {}),
        ({"entry": {"batchSize": "80"}, "config": {"batchSize": 70}}, {"max_batch_size": 70}),
        (
            {"entry": {"responseTimeout": 7}, "config": {"responseTimeout": 5}},
            {"request_timeout": 7},
        ),
        ({"properties": {"max_request_size": "655350000"}}, {}),
        ({"properties": {"max_request_size": "65535"}}, {"max_body_size": 65535}),
        ({"config": {"handler": {"offload_folder": "/etc"}}}, {}),
        ({"config": {"handler": {"offload_folder": "a/../.."}}}, {}),
        ({"config": {"handler": {"offload_folder": "a/b"}}}, {"offload_folder": "a/b"}),
        ({"setup": {"offload_folder": "/mnt/offload"}}, {}),
        ({"config": {"parallelType": "tp"}}, {"device_map": "balanced"}),
        ({"config": {"handler": {"max_length": 50}}}, {"max_length": 50}),
        (
            {"config": {"handler": {"max_new_tokens": 50}}},
            {"override_generation_config": {"max_new_tokens": 50}},
        ),
        ({"config": {"handler": {"dtype": "fp16"}}}, {"dtype": "float16"}),
        ({"config": {"handler": {"dtype": "torch.bfloat16"}}}, {"dtype": "bfloat16"}),
        ({"config": {"handler": {"dtype": "int8"}}}, {}),
        ({"config": {"handler": {"device_map": "sequential"}}}, {"device_map": "sequential"}),
    ],
)
def test_settings_follow(fields: dict[str, Any], settings: dict[str, Any]) -> None:
    assert extra_settings(**fields) == settings
    read_settings(
        {**translate(source_of(**fields)).setup_config, "model_dir": "/dev/null"}, environ={}
    )


def test_prompt_and_reply_together_are_the_longest_sequence() -> None:
    translation = translate(
        source_of(config={"handler": {"max_length": "50", "max_new_tokens": 30}})
    )

    assert translation.setup_config["max_model_len"] == 80
    assert "max_length" not in translation.setup_config
    assert translation.setup_config["override_generation_config"] == {"max_new_tokens": 30}


@pytest.mark.parametrize(
    "fields",
    [
        {"config": {"pippy": {"chunks": 1}}},
        {"config": {"deepspeed": {"config": "ds-config.json"}}},
        {"handler": Handler("h", limits_total=True)},
    ],
)
def test_a_total_length_is_mapped_to_the_longest_sequence(fields: dict[str, Any]) -> None:
    config = {**fields.get("config", {}), "handler": {"max_length": 50, "max_new_tokens": 60}}
    translation = translate(source_of(**{**fields, "config": config}))

    assert translation.setup_config["max_model_len"] == 60
    assert row_of(translation, "handler.max_new_tokens").explanation == (
        "`max_model_len` 60: the handler gave it to generate() as max_length, so it was the total "
        "length of prompt and reply"
    )
    assert row_of(translation, "handler.max_length").explanation == (
        "prompt and reply share the 60 tokens of `max_new_tokens`"
    )


def test_positions_bound_the_longest_sequence() -> None:
    source = source_of(config={"handler": {"max_length": 5000, "max_new_tokens": 30}})

    assert translate(source, positions=2048).setup_config["max_model_len"] == 2048
    assert translate(source, positions=None).setup_config["max_model_len"] == 5030


@pytest.mark.parametrize(
    ("section", "generation"),
    [
        ({"temperature": 0.7}, {"temperature": 0.7, "do_sample": True}),
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0, "top_p": 0.9}, {"top_p": 0.9, "do_sample": False}),
        ({"top_p": 0.9, "do_sample": True, "temperature": 0.0}, {"top_p": 0.9, "do_sample": False}),
        ({"temperature": 0.7, "do_sample": False}, {"temperature": 0.7, "do_sample": False}),
        ({"temperature": -1}, {}),
        ({"temperature": float("nan")}, {}),
        ({"temperature": float("inf")}, {}),
        ({"top_p": 0.9, "top_k": 5}, {"top_p": 0.9, "top_k": 5, "do_sample": True}),
        ({"top_p": 2}, {}),
        ({"top_k": -1}, {}),
        ({"do_sample": "yes"}, {}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
    ],
)
def test_generation_follows(section: dict[str, Any], generation: dict[str, Any]) -> None:
    settings = translate(source_of(config={"handler": section})).setup_config
    assert settings.get("override_generation_config", {}) == generation


@pytest.mark.parametrize(
    ("named", "task"),
    [
        ("text-generation", "text_generation"),
        ("conversational", "text_generation"),
        ("sequence_classification", "sequence_classification"),
        ("sentiment-analysis", "sequence_classification"),
        ("Fill-Mask", "fill_mask"),
        ("translation_en_to_fr", "text2text_generation"),
        ("", None),
        (5, None),
    ],
)
@pytest.mark.parametrize("key", ["task_name", "task", "mode"])
def test_a_task_is_followed_wherever_it_is_named(key: str, named: Any, task: str | None) -> None:
    for source in (
        source_of(setup={key: named}),
        source_of(config={"handler": {key: named}}),
    ):
        assert translate(source).setup_config.get("task") == task


@pytest.mark.parametrize(
    "named", ["text-to-image", "image_classification", "zero-shot-classification", "x" * 500]
)
@pytest.mark.parametrize("key", ["task_name", "task"])
def test_a_task_that_is_not_served_is_refused_by_its_key(key: str, named: str) -> None:
    for source in (
        source_of(setup={key: named}),
        source_of(config={"handler": {key: named}}),
    ):
        with pytest.raises(ArchiveError, match=f"^{key} names the task '{named[:20]}"):
            translate(source)


def test_a_reply_without_its_prompt_has_a_row() -> None:
    def explanations(**fields: Any) -> list[str]:
        continues = fields.pop("continues_prompts", True)
        translation = translate(source_of(**fields), continues_prompts=continues)
        return [row.explanation for row in translation.rows if row.key == "the reply"]

    (explanation,) = explanations()
    assert "a request says `return_full_text`" in explanation
    assert not explanations(continues_prompts=False)
    assert not explanations(setup={"max_length": "80"})  # its replies begin with the prompt
    assert not explanations(config={"handler": {"return_full_text": True}})


@pytest.mark.parametrize(
    ("fields", "gpus"),
    [
        ({}, 1),
        ({"config": {"deviceType": "cpu"}}, 0),
        ({"config": {"deviceType": "neuron"}}, 0),
        ({"config": {"deviceType": "gpu"}}, 1),
        ({"config": {"deviceIds": [0, 2, 3], "parallelLevel": 2}}, 3),
        ({"config": {"parallelLevel": 2}}, 2),
        ({"config": {"torchrun": {"nproc-per-node": 4}}}, 4),
        ({"config": {"torchrun": {"nproc-per-node": "4"}}}, 1),
        ({"config": {"deviceType": "cpu", "parallelLevel": 2}}, 0),
        ({"setup": {"max_memory": {"0": "10GB", "1": "10GB", "cpu": "10GB"}}}, 2),
        ({"setup": {"max_memory": {"0": "10GB", "1": "0GB", "cpu": "10GB"}}}, 2),
        ({"setup": {"max_memory": {"0": "1GB"}}, "config": {"deviceType": "cpu"}}, 1),
        ({"setup": {"max_memory": {"1": "1GB"}}, "config": {"deviceIds": [0]}}, 2),
        ({"setup": {"device_map": {"a": "cuda:1", "b": "cpu", "c": 0}}}, 2),
        ({"setup": {"device_map": "cuda:0"}}, 1),
        ({"setup": {"device_map": {"a": "cpu"}}, "properties": {"number_of_gpu": "0"}}, 0),
        ({"setup": {"max_memory": {"cpu": "10GB"}}}, 0),
        ({"setup": {"max_memory": {"cpu": "10GB"}}, "config": {"deviceType": "gpu"}}, 1),
        ({"setup": {"device_map": "cpu"}}, 0),
        ({"properties": {"number_of_gpu": "4"}}, 4),
        ({"properties": {"number_of_gpu": "0"}}, 0),
        ({"properties": {"number_of_gpu": "4"}, "setup": {"max_memory": {"0": "1GB"}}}, 1),
    ],
)
def test_the_deployment_requests_as_many_gpus_as_the_model_had(fields: Any, gpus: int) -> None:
    assert translate(source_of(**fields)).gpus == gpus


@pytest.mark.parametrize("key", ["trust_remote_code", "allow_pickle", "enable_load_unload"])
def test_settings_that_allow_code_to_run_are_not_taken_from_an_archive(key: str) -> None:
    assert key not in translate(source_of(setup={**SEED, key: True})).setup_config


@pytest.mark.parametrize("key", ["model_dir", "model_id", "host", "http_port", "grpc_port"])
def test_settings_of_addresses_and_paths_are_not_taken(key: str) -> None:
    assert key not in translate(source_of(setup={**SEED, key: "x"})).setup_config


def test_the_name_is_the_manifests_and_not_that_of_a_hub_model() -> None:
    translation = translate(source_of(setup={"model_name": "bert-base-uncased"}))

    assert translation.setup_config["model_name"] == "bloom"


def test_setup_config_takes_precedence_over_translated_settings() -> None:
    config = {"handler": {"dtype": "bf16"}, "batchSize": 4}
    translation = translate(
        source_of(config=config, setup={"torch_dtype": "float16", "max_batch_size": 2})
    )

    assert translation.setup_config["torch_dtype"] == "float16"
    assert "dtype" not in translation.setup_config
    assert translation.setup_config["max_batch_size"] == 2
    assert row_of(translation, "handler.dtype").explanation == "setup_config.json is stronger"


@pytest.mark.parametrize(
    ("setup", "semantics"),
    [(None, False), ({}, False), ({"max_length": "80"}, True), ({"max_length": 80}, True)],
)
def test_the_examples_semantics_are_kept_where_the_examples_file_is(
    setup: Any, semantics: bool
) -> None:
    assert ("torchserve_semantics" in translate(source_of(setup=setup)).setup_config) is semantics


@pytest.mark.parametrize("version", ["a/b", "", "a b", 1, None, "x" * 65])
def test_a_version_that_cannot_stand_in_a_url_is_not_taken(version: Any) -> None:
    assert "model_version" not in translate(source_of(model={"modelVersion": version})).setup_config


def test_a_built_in_handler_is_reported() -> None:
    translation = translate(
        source_of(model={"handler": "text_classifier"}, handler=Handler("text_classifier"))
    )

    assert row_of(translation, "model.handler").explanation == (
        "not in the archive: a built-in handler of TorchServe's, or lost"
    )


def test_any_value_is_shown_on_one_short_line() -> None:
    nested: Any = 1
    for _ in range(500):
        nested = [nested, nested]
    huge = 1 << 40_000
    config = {"new\x1b[2J" + "k" * 1000: "a\nb\x1b[2J" + "v" * 10**6, "deep": nested, "huge": huge}
    rows = [row for row in translate(source_of(config=config)).rows if row.file == CONFIG]

    assert len(rows) == 3
    for row in rows:
        assert row.key.isprintable()
        assert row.value.isprintable()
        assert len(row.key) <= 64
        assert len(row.value) <= 60


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("keystore_pass", "x", "(not shown)"),
        ("hf_token", "x", "(not shown)"),
        ("auth-token", "x", "(not shown)"),
        ("client_secret", "x", "(not shown)"),
        ("apiKey", "x", "(not shown)"),
        ("auth", {"password": "x"}, '{"password": (not shown)}'),
        ("vmargs", "-Dpassword=x", "(not shown)"),
        ("max_new_tokens", "5", "5"),
        ("tokenizer_dir", "x", "x"),
        ("disable_token_authorization", "true", "true"),
        ("private_key_file", "/etc/x.pem", "/etc/x.pem"),
        ("path", "x", "x"),
    ],
)
def test_likely_secrets_are_not_shown(key: str, value: Any, shown: str) -> None:
    assert row_of(translate(source_of(config={key: value})), key).value == shown


def test_the_new_file_is_json_again() -> None:
    assert json.loads(json.dumps(translate(RICH).setup_config)) == translate(RICH).setup_config
