"""Settings from flags, environment and setup_config.json."""

import json
from pathlib import Path

import pydantic
import pytest

from predictor.errors import ConfigurationError
from predictor.settings import Settings, explicit_settings, names, read_settings
from predictor.settings_sources import ALIASES

SHIPPED = {
    "revision": "main",
    "max_memory": {"0": "10GB", "cpu": "10GB"},
    "low_cpu_mem_usage": True,
    "device_map": "auto",
    "offload_folder": "offload",
    "offload_state_dict": True,
    "torch_dtype": "float16",
    "max_length": "80",
}
"""The predecessor's own setup_config.json."""


@pytest.fixture
def model_dir(tmp_path):
    """A function that writes a setup_config.json and returns its directory."""

    def write(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "setup_config.json").write_text(text)
        return str(tmp_path)

    return write


def read(flags=None, environ=None):
    return read_settings({"model_dir": "/nowhere"} | (flags or {}), environ=environ or {})


def test_without_any_source_every_setting_has_its_default():
    settings = read_settings({}, environ={})

    assert settings.model_dir == Path("/mnt/models")
    assert settings.model_name == "model"
    assert settings.dtype == "auto"
    assert settings.device_map == "auto"
    assert settings.max_memory is None
    assert settings.max_concurrency is None
    assert settings.http_port == 8080
    assert settings.memory_reserve == 128 * 1024**2
    assert settings.allow_pickle is False


def test_the_file_is_stronger_than_the_default(model_dir):
    folder = model_dir({"max_concurrency": 2})

    assert read({"model_dir": folder}).max_concurrency == 2


def test_the_environment_is_stronger_than_the_file(model_dir):
    folder = model_dir({"max_concurrency": 2, "prefill_chunk": 64})
    settings = read_settings(
        {}, environ={"PREDICTOR_MODEL_DIR": folder, "PREDICTOR_MAX_CONCURRENCY": "3"}
    )

    assert settings.max_concurrency == 3
    assert settings.prefill_chunk == 64


def test_a_flag_is_stronger_than_the_environment(model_dir):
    folder = model_dir({"max_concurrency": 2})
    settings = read(
        {"model_dir": folder, "max_concurrency": "4"}, {"PREDICTOR_MAX_CONCURRENCY": "3"}
    )

    assert settings.max_concurrency == 4


def test_a_flag_is_stronger_than_the_file_even_where_it_says_the_default(model_dir):
    folder = model_dir({"max_concurrency": 2})

    assert read({"model_dir": folder, "max_concurrency": "1"}).max_concurrency == 1


def test_the_file_lies_in_the_directory_that_the_strongest_source_names(model_dir, tmp_path):
    folder = model_dir({"max_concurrency": 2})
    settings = read({"model_dir": folder}, {"PREDICTOR_MODEL_DIR": "/nowhere"})

    assert settings.max_concurrency == 2


def test_the_predecessors_shipped_file_is_read_whole(model_dir):
    folder = model_dir(SHIPPED)
    settings = read({"model_dir": folder})

    assert settings.model_dump(exclude_defaults=True) == {
        "model_dir": Path(folder),
        "model_revision": "main",
        "max_memory": {"0": 10_000_000_000, "cpu": 10_000_000_000},
        "low_cpu_mem_usage": True,
        "offload_folder": Path(folder) / "offload",  # as the handler, which ran there
        "offload_state_dict": True,
        "dtype": "float16",
        "max_length": 80,
    }


def test_an_object_of_a_stronger_source_is_not_merged_with_the_files(model_dir):
    folder = model_dir(SHIPPED)
    settings = read({"model_dir": folder, "max_memory": {"cpu": "1GiB"}})
    assert settings.max_memory == {"cpu": 1024**3}


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [("revision", "model_revision", "v1.0"), ("torch_dtype", "dtype", "bfloat16")],
)
@pytest.mark.parametrize("source", ["flag", "environment", "file"])
def test_an_alias_works_from_every_source(model_dir, alias, name, value, source):
    given = {alias: value}
    settings = read(
        {"model_dir": model_dir(given if source == "file" else {})}
        | (given if source == "flag" else {}),
        {f"PREDICTOR_{alias.upper()}": value} if source == "environment" else {},
    )

    assert getattr(settings, name) == value


@pytest.mark.parametrize("strong", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("weak", ["dtype", "torch_dtype"])
def test_strength_does_not_depend_on_which_of_two_names_is_used(model_dir, strong, weak):
    flags = {"model_dir": model_dir({weak: "float16"})}

    assert read(flags, {f"PREDICTOR_{strong.upper()}": "bfloat16"}).dtype == "bfloat16"
    assert read(flags | {strong: "float64"}, {"PREDICTOR_DTYPE": "bfloat16"}).dtype == "float64"


def test_an_unknown_flag_names_the_nearest_known_one():
    with pytest.raises(ConfigurationError) as raised:
        read({"max_memmory": "{}"})

    assert str(raised.value) == "Unknown flag --max_memmory; did you mean --max_memory?"


@pytest.mark.parametrize("name", ["quantization", "quantize", "load_in_8bit", "load_in_4bit"])
def test_other_servers_ways_to_quantise_are_refused_with_ours(name):
    with pytest.raises(ConfigurationError) as raised:
        read({name: "fp8"})

    assert str(raised.value) == (
        f"Unknown flag --{name}: a quantised checkpoint is recognised without it, and "
        "--weights_dtype int8 or int4 quantises one that is not."
    )


def test_an_unknown_variable_names_the_nearest_known_one():
    with pytest.raises(ConfigurationError) as raised:
        read(environ={"PREDICTOR_MODEL_DIRECTORY": "/m"})

    assert str(raised.value) == (
        "Unknown environment variable PREDICTOR_MODEL_DIRECTORY; did you mean PREDICTOR_MODEL_DIR?"
    )


def test_an_unknown_key_in_the_file_names_the_file_and_the_nearest_known_one(model_dir):
    folder = model_dir({"max_lenght": 80})
    with pytest.raises(ConfigurationError) as raised:
        read({"model_dir": folder})

    assert str(raised.value) == (
        f"Unknown key max_lenght in {folder}/setup_config.json; did you mean max_length?"
    )


def test_a_key_of_the_users_own_in_the_file_is_a_line_in_the_log(model_dir, caplog):
    folder = model_dir({"max_length": "80", "model_path": "x", "zzz": 1})
    assert read({"model_dir": folder}).max_length == 80
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"{folder}/setup_config.json has keys that are no settings: model_path, zzz"


def test_an_unknown_name_without_a_near_one_is_refused_all_the_same():
    with pytest.raises(ConfigurationError) as raised:
        read({"zzz": "1"})

    assert str(raised.value) == "Unknown flag --zzz."


# What the kubelet sets for a Service `predictor` (and for `predictor-http`, `predictor-predictor`):
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
SERVICE_LINKS = {
    "PREDICTOR_SERVICE_HOST": "10.0.0.11",
    "PREDICTOR_SERVICE_PORT": "80",
    "PREDICTOR_SERVICE_PORT_HTTP_API": "80",
    "PREDICTOR_PORT": "tcp://10.0.0.11:80",
    "PREDICTOR_PORT_80_TCP": "tcp://10.0.0.11:80",
    "PREDICTOR_PORT_80_TCP_PROTO": "tcp",
    "PREDICTOR_PORT_80_TCP_PORT": "80",
    "PREDICTOR_PORT_80_TCP_ADDR": "10.0.0.11",
    "PREDICTOR_PORT_53_UDP": "udp://10.0.0.11:53",
    "PREDICTOR_PREDICTOR_SERVICE_HOST": "10.0.0.12",
    "PREDICTOR_PREDICTOR_PORT": "tcp://10.0.0.12:80",
    "PREDICTOR_PREDICTOR_PORT_80_TCP_ADDR": "10.0.0.12",
    "PREDICTOR_HTTP_PORT": "tcp://10.0.0.13:80",
    "PREDICTOR_HTTP_SERVICE_PORT": "80",
}


@pytest.mark.parametrize("name", SERVICE_LINKS)
def test_a_service_link_variable_is_not_ours(name):
    assert read(environ={name: SERVICE_LINKS[name]}) == read()


def test_ports_that_are_ours_are_still_read_beside_service_links():
    links = {name: value for name, value in SERVICE_LINKS.items() if name != "PREDICTOR_HTTP_PORT"}
    settings = read(environ=links | {"PREDICTOR_HTTP_PORT": "9000", "PREDICTOR_GRPC_PORT": "0"})

    assert (settings.http_port, settings.grpc_port) == (9000, 0)


def test_a_port_that_is_a_number_is_taken_for_a_misspelt_setting():
    with pytest.raises(ConfigurationError, match="Unknown environment variable PREDICTOR_PORT"):
        read(environ={"PREDICTOR_PORT": "8080"})


def test_variables_of_others_are_left_alone():
    assert read(environ={"PATH": "/bin", "PREDICTORS": "3", "MODEL_NAME": "x"}) == read()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("max_length", "eighty", "max_length: Input should be a valid integer, unable to parse"),
        ("max_length", "0", "max_length: Input should be greater than or equal to 1"),
        ("max_memory", "10GB", 'max_memory: must be an object such as {"0": "10GiB", "cpu"'),
        ("max_memory", '{"0": "ten"}', "max_memory: 'ten' is no amount of memory; write it like"),
        ("max_memory", '{"0": ', "max_memory: is no JSON object (Expecting value"),
        ("memory_headroom", "1", "memory_headroom: Input should be less than 1"),
        ("memory_headroom", "nan", "memory_headroom: Input should be"),
        ("grace_period", "inf", "grace_period: Input should be a finite number"),
        ("gpu_fraction", "1.5", "gpu_fraction: Input should be less than or equal to 1"),
        ("dtype", "int8", "dtype: Input should be 'auto', 'float32', 'float16', 'bfloat16'"),
        ("model_name", "a/b", "model_name: is part of URLs, and so has no slash"),
        ("model_id", "", "model_id: String should have at least 1 character"),
        ("allow_pickle", "perhaps", "allow_pickle: Input should be a valid boolean"),
        ("http_port", "70000", "http_port: Input should be less than or equal to 65535"),
        ("max_body_size", "8Mib", "max_body_size: '8Mib' is no amount of memory"),
    ],
)
def test_a_bad_value_gives_one_sentence_that_names_the_setting(name, value, sentence):
    with pytest.raises(ConfigurationError) as raised:
        read({name: value})

    text = str(raised.value)
    assert text.startswith(sentence)
    assert repr(value) in text or "ten" in text
    assert text.endswith(".")
    assert "\n" not in text


@pytest.mark.parametrize("scheme", ["s3", "https", "http"])
def test_a_uri_that_is_fetched_is_no_model_dir_but_a_model_uri(scheme):
    uri = f"{scheme}://server/folder"
    assert read({"model_uri": uri}).model_uri == uri
    with pytest.raises(ConfigurationError, match="set it as model_uri"):
        read({"model_dir": uri})


def test_numbers_and_switches_are_read_from_text():
    settings = read(
        {"allow_pickle": "true", "enable_grpc": "false", "grace_period": "2.5"},
        {"PREDICTOR_PREFILL_CHUNK": "16", "PREDICTOR_LOW_CPU_MEM_USAGE": "1"},
    )

    assert settings.allow_pickle is True
    assert settings.enable_grpc is False
    assert settings.grace_period == 2.5
    assert settings.prefill_chunk == 16
    assert settings.low_cpu_mem_usage is True


def test_objects_are_read_from_json_text():
    settings = read(
        {"max_memory": ' {"0": "10GiB", "cpu": 5000}'},
        {"PREDICTOR_DEVICE_MAP": '{"transformer": 0, "lm_head": "cpu"}'},
    )

    assert settings.max_memory == {"0": 10 * 1024**3, "cpu": 5000}
    assert settings.device_map == {"transformer": "0", "lm_head": "cpu"}


def test_the_file_may_hold_real_numbers_objects_and_nulls(model_dir):
    folder = model_dir({"device_map": {"": 0}, "max_memory": {"0": 1024}, "max_length": None})
    settings = read({"model_dir": folder})

    assert settings.device_map == {"": "0"}
    assert settings.max_memory == {"0": 1024}
    assert settings.max_length is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("float16", "float16"),
        ("torch.bfloat16", "bfloat16"),
        ("half", "float16"),
        ("float", "float32"),
        ("auto", "auto"),
    ],
)
def test_a_dtype_may_be_written_in_every_way_that_the_field_writes_it(text, expected):
    assert read({"dtype": text}).dtype == expected


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "cannot be read as JSON"), ("[]", "must hold one JSON object")]
)
def test_a_damaged_file_is_refused_by_its_name(model_dir, content, reason):
    folder = model_dir(content)
    with pytest.raises(ConfigurationError, match=rf"setup_config\.json {reason}"):
        read({"model_dir": folder})


def test_a_bare_config_file_instead_of_a_directory_has_no_setup_config_beside_it(tmp_path):
    config = tmp_path / "config.json"
    config.write_text("{}")

    assert read({"model_dir": str(config)}).model_dir == config


def test_the_directory_is_not_read_where_the_model_is_on_the_hub(model_dir):
    folder = model_dir({"max_length": 80})

    assert read({"model_dir": folder, "model_id": "org/model"}).max_length is None


def test_settings_are_frozen():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        read().model_name = "other"


def test_every_setting_says_what_it_is():
    folder = Path(__file__).parent.parent / "predictor"
    source = (folder / "settings.py").read_text()
    body = source[source.index("class Settings") : source.index("def settings_customise_sources")]
    for group in ("chat", "generation", "limits", "protocols", "weights"):
        body += (folder / f"settings_{group}.py").read_text()

    for name in Settings.model_fields:
        after = body[body.index(f"    {name}: ") :].split('"""')
        assert "\n\n" not in after[0], f"{name} has no docstring"


def test_names_are_the_settings_and_their_aliases():
    assert set(names()) == {*Settings.model_fields, *ALIASES}
    assert not set(ALIASES) & set(Settings.model_fields)


def test_explicit_settings_are_those_of_flags_and_environment(model_dir):
    flags = {"model_dir": model_dir({"max_length": 80}), "torch_dtype": "torch.float16"}
    environ = {"PREDICTOR_MAX_MEMORY": '{"cpu": "8GiB", "0": "10GB"}', "PREDICTOR_PORT": "tcp://1"}
    settings = read_settings(flags, environ=environ)

    assert explicit_settings(settings, flags, environ) == {
        "model_dir": flags["model_dir"],
        "dtype": "float16",
        "max_memory": {"cpu": "8Gi", "0": "10G"},
    }


def test_a_default_that_is_stated_is_explicit():
    flags = {"model_dir": "/nowhere", "memory_reserve": "128Mi"}

    assert explicit_settings(read_settings(flags, environ={}), flags, {}) == flags


def test_explicit_settings_make_the_same_settings_again():
    flags = {
        "model_dir": "/nowhere",
        "max_memory": '{"cpu": "1.5GiB"}',
        "max_body_size": "1e6",
        "device_map": '{"": "cpu"}',
        "verify_store": "yes",
        "request_timeout": "1.5",
    }
    settings = read_settings(flags, environ={})

    assert read_settings(explicit_settings(settings, flags, {}), environ={}) == settings


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *[("PREDICTOR_API_KEY", given) for given in ("", " ", ",", "[]")],
        *[("VLLM_API_KEY", given) for given in ("", " ")],
    ],
)
def test_an_api_key_that_is_set_is_not_empty(name, given):
    with pytest.raises(ConfigurationError, match=r"^api_key is set and has no key"):
        read(environ={name: given})


def test_none_is_no_key_of_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("None\n")
    with pytest.raises(ConfigurationError, match=r"has no key\.$"):
        read(environ={"PREDICTOR_API_KEY_FILE": str(file)}).api_keys()


def test_vllms_variable_sets_the_api_key_and_ours_wins():
    environ = {"VLLM_API_KEY": "theirs"}
    assert read(environ=environ).api_keys() == ("theirs",)
    assert read(environ={**environ, "PREDICTOR_API_KEY": "ours"}).api_keys() == ("ours",)


@pytest.mark.parametrize("given", ["a,b", ",", "[]", '["a"]'])
def test_vllms_variable_is_one_key_whatever_is_in_it(given):
    assert read(environ={"VLLM_API_KEY": given}).api_keys() == (given,)


@pytest.mark.parametrize("given", ["super secret key", "ok,a secret", '["a secret"]', ["a secret"]])
@pytest.mark.parametrize("source", ["flag", "environment", "file"])
def test_no_error_shows_a_secret(model_dir, source, given):
    flags = {"model_dir": model_dir({"api_key": given} if source == "file" else {})}
    flags |= {"api_key": given} if source == "flag" else {}
    environ = {"PREDICTOR_API_KEY": str(given)} if source == "environment" else {}
    with pytest.raises(ConfigurationError, match=r"^api_key: ") as refused:
        read_settings(flags, environ=environ)
    assert "secret" not in str(refused.value)


def test_a_body_has_at_least_one_byte(model_dir):
    with pytest.raises(ConfigurationError, match="max_body_size"):
        read({"model_dir": model_dir({}), "max_body_size": "0"})
