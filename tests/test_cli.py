"""The command: its flags, its plan, and its last words."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from predictor import cli
from predictor.pod.stated import PROCESSES
from predictor.settings_sources import PREFIX
from tests.checkpoints import CONFIGS, byte_tokenizer, make_checkpoint
from tests.weights.remote.web import web

ROOT = Path(__file__).parents[1]
STATED = ["--memory", "1GiB"]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def termination_log(tmp_path, monkeypatch):
    file = tmp_path / "termination-log"
    file.touch()
    monkeypatch.setattr(cli, "TERMINATION_LOG", file)
    return file


@pytest.fixture
def bloom(tmp_path):
    """A directory with the config of a small model and nothing else."""
    folder = tmp_path / "bloom"
    CONFIGS["bloom"].save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(capsys):
    """Runs the command; returns its exit code and what it wrote."""

    def main(*arguments):
        code = cli.main(list(arguments))
        return code, *capsys.readouterr()

    return main


@pytest.fixture
def plan(run):
    """Runs ``plan --output json``; returns what it printed."""

    def main(*arguments):
        code, out, err = run("plan", *arguments, "--output", "json")
        assert code == 0, err
        return json.loads(out)

    return main


def test_plan_prints_the_table_of_a_directory(run, bloom):
    code, out, _ = run("plan", bloom, *STATED)

    assert code == 0
    assert out.startswith("Placement of BloomForCausalLM in float32\n")
    assert "limited by nothing: every weight is where it executes" in out


def test_plan_prints_json_and_nothing_else(run, bloom):
    _, out, _ = run("plan", bloom, "--gpus", "24GiB", *STATED, "--output", "json")
    planned = json.loads(out)

    assert planned["device_map"]["transformer.h.0"] == 0
    assert planned["architecture"] == "BloomForCausalLM"


def test_plan_takes_a_bare_config_file(plan, bloom):
    assert plan(f"{bloom}/config.json", *STATED)["architecture"] == "BloomForCausalLM"


@pytest.mark.parametrize("flag", ["--model_dir", "--model-dir"])
def test_plan_takes_the_directory_as_a_flag_too(plan, bloom, flag):
    assert plan(flag, bloom, *STATED)["architecture"] == "BloomForCausalLM"


def test_plan_takes_the_directory_from_the_environment(plan, bloom, monkeypatch):
    monkeypatch.setenv("PREDICTOR_MODEL_DIR", bloom)

    assert plan(*STATED)["architecture"] == "BloomForCausalLM"


def test_stated_resources_stand_in_for_the_pods(plan, bloom):
    # 4 MiB hold one block and what executing needs, on the first of two GPUs or on both
    planned = plan(bloom, "--gpus", "2x4MiB,8MiB", "--memory", "1GiB", "--disk", "2GiB")
    owned = {tier["name"]: tier["owned"] for tier in planned["tiers"]}

    mib = 1024**2
    assert owned == {
        "0": 4 * mib,
        "1": 4 * mib,
        "2": 8 * mib,
        "cpu": 1024 * mib - PROCESSES,
        "disk": 2048 * mib,
    }


COMPARED = ("--memory=1GiB", "--disk=2GiB", "--compare=gpus=2x4MiB", "--compare=gpus=none")


def test_plan_compares_resources_line_by_line(run, bloom):
    code, out, _ = run("plan", bloom, *COMPARED, "--compare", "memory=2GiB,gpus=16MiB")

    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[2:5]] == [
        *("gpus=2x4MiB", "gpus=none", "memory=2GiB,gpus=16MiB"),
    ]
    assert "an estimate and no measurement" in out


def test_compared_resources_have_in_common_what_the_flags_state(plan, bloom):
    two, none = plan(bloom, *COMPARED)["alternatives"]

    assert [tier["name"] for tier in two["placement"]["tiers"]] == ["0", "1", "cpu", "disk"]
    assert [tier["name"] for tier in none["placement"]["tiers"]] == ["cpu", "disk"]
    assert none["placement"]["tiers"][0]["owned"] == 1024**3 - PROCESSES


def test_resources_that_the_model_does_not_fit_are_a_line_and_not_the_end(run, bloom):
    small = ("--compare=memory=1GiB", "--max_model_len=64", '--max_memory={"cpu": "100KiB"}')
    code, out, _ = run("plan", bloom, *small)

    assert code == 78
    assert "does not fit" in out


def test_compared_resources_without_memory_are_refused(run, bloom):
    code, _, err = run("plan", bloom, "--compare", "gpus=24GiB")

    assert code == 78
    assert "states no memory; add memory=64GiB to it, or --memory" in err


def test_several_resources_make_no_deployment(run, bloom):
    code, _, err = run("plan", bloom, *COMPARED, "--output=helm-values")

    assert code == 78
    assert "--compare prints table, json, svg, html" in err


@pytest.mark.parametrize("alternatives", [STATED, COMPARED])
def test_a_plan_is_a_picture_or_a_page(run, bloom, alternatives):
    _, svg, _ = run("plan", bloom, *alternatives, "--output=svg")
    _, page, _ = run("plan", bloom, *alternatives, "--output=html")

    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")


def test_a_stated_bandwidth_is_in_the_estimate_that_the_table_then_has(run, plan, bloom):
    _, plain, _ = run("plan", bloom, *STATED)
    _, out, _ = run("plan", bloom, *STATED, "--memory_bandwidth", "80GB/s")

    assert out.splitlines()[:-1] == plain.splitlines()
    assert "limited by main memory at 80 GB/s (stated)" in out.splitlines()[-1]
    estimate = plan(bloom, *STATED, "--memory-bandwidth=80GB")["estimate"]
    assert estimate["bandwidths"]["memory"] == {"bytes_per_second": 80e9, "source": "stated"}


def test_the_bandwidth_of_the_disk_is_measured_by_reading_a_file_of_the_model(plan, tmp_path):
    folder = make_checkpoint(tmp_path, "bloom")
    estimate = plan(str(folder), *STATED, "--disk_bandwidth=measured")["estimate"]

    assert estimate["bandwidths"]["disk"]["source"] == "measured"
    assert estimate["bandwidths"]["disk"]["bytes_per_second"] > 1e6


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--disk_bandwidth=measured", "reads a file of the model, and there is none here"),
        ("--link_bandwidth=measured", "--link_bandwidth cannot be read: 'measured' is no amount"),
        ("--gpu_bandwidth=0", "--gpu_bandwidth is 0; it must be above 0"),
    ],
)
def test_a_wrong_bandwidth_is_refused(run, bloom, flag, message):
    code, _, err = run("plan", bloom, *STATED, flag)

    assert code == 78
    assert message in err


CLAIMED = (
    *("--memory=1GiB", "--disk=2GiB", "--max_model_len=64", '--max_memory={"cpu": "1800KiB"}'),
    "--replicas=3",
)


def test_replicas_on_one_claim_have_their_reads_in_the_last_lines(run, plan, bloom):
    code, assumed, _ = run("plan", bloom, *CLAIMED)
    _, stated, _ = run("plan", bloom, *CLAIMED, "--disk_bandwidth=2GB")
    claim = plan(bloom, *CLAIMED, "--disk_bandwidth=2GB")["claim"]

    assert code == 0
    assert assumed.splitlines()[-2].startswith("3 replicas on one claim read at most ")
    assert "at 1 GB/s of the claim (assumed; --disk_bandwidth states it)" in assumed
    assert "at 2 GB/s of the claim (stated), a forward pass takes at least" in stated
    assert (claim["replicas"], claim["bandwidth"], claim["bandwidth_source"]) == (3, 2e9, "stated")
    assert claim["total_bytes"] == 3 * claim["pass_bytes"] > 0
    assert claim["pass_seconds"] == claim["total_bytes"] / 2e9


def test_the_example_of_replicas_in_the_guide_runs(run, bloom):
    page = (ROOT / "docs" / "guides" / "autoscaling.md").read_text()
    (example,) = re.findall(r"^predictor (plan DIR .*--replicas.*)$", page, re.MULTILINE)
    code, out, _ = run(*(bloom if word == "DIR" else word for word in example.split()))

    assert code == 0
    assert out.splitlines()[-1] == "3 replicas read nothing from a claim while they serve"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--replicas=0",), "--replicas: "),
        (("--replicas=2", "--output=helm-values"), "--replicas is for one plan as a table or JSON"),
        (("--replicas=2", "--compare=gpus=none"), "--replicas is for one plan as a table or JSON"),
    ],
)
def test_replicas_without_one_plan_are_refused(run, bloom, flags, message):
    code, _, err = run("plan", bloom, *STATED, *flags)

    assert code == 78
    assert message in err


def test_helm_values_are_yaml_and_nothing_else(run, bloom):
    stated = ("--gpus", "2x4MiB", "--memory", "1GiB", "--disk", "2GiB", "--cpus", "6")
    code, out, _ = run(
        "plan",
        bloom,
        *stated,
        "--max-model-len=48",
        "--gpu-resource=amd.com/gpu",
        "--output",
        "helm-values",
    )

    assert code == 0
    assert yaml.safe_load(out) == {
        "model": {"uri": "pvc://CLAIM/PATH"},
        "accelerators": {"amd.com/gpu": 2},
        "resources": {
            "requests": {"cpu": 6, "memory": "1Gi"},
            "limits": {"memory": "1Gi"},
        },
        "offload": {"enabled": False},
        "settings": {"max_model_len": 48},
    }


def test_what_does_not_stay_in_memory_gets_a_claim(run, bloom):
    options = ("--max_memory", '{"cpu": "1800KiB"}', "--max_model_len=64", "--model_name=small")
    _, out, _ = run(
        "plan", bloom, "--memory=1GiB", "--disk=2GiB", *options, "--output=inferenceservice"
    )
    claim, service = yaml.safe_load_all(out)

    assert claim["metadata"]["name"] == "small-offload"
    assert claim["spec"]["resources"]["requests"]["storage"] == "2Gi"
    assert service["metadata"]["name"] == "small"
    assert service["spec"]["predictor"]["model"]["args"] == [
        "--offload_folder=/offload",
        "--max_model_len=64",
        '--max_memory={"cpu": "1800Ki"}',
    ]


def test_a_deployment_takes_settings_from_the_environment_too(run, bloom, monkeypatch):
    monkeypatch.setenv("PREDICTOR_DTYPE", "float16")
    _, out, _ = run("plan", bloom, *STATED, "--output", "helm-values")

    assert yaml.safe_load(out)["settings"] == {"dtype": "float16"}


def test_a_deployment_without_stated_memory_is_refused(run, bloom):
    code, out, err = run("plan", bloom, "--gpus=1GiB", "--output=helm-values")

    assert (code, out) == (78, "")
    assert "The container needs a memory limit" in err


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "many"])
def test_processors_are_counted_in_whole_ones(run, bloom, count):
    code, _, err = run("plan", bloom, *STATED, f"--cpus={count}")

    assert code == 78
    assert f"Argument --cpus: {count!r} is no whole number of at least 1." in err


def test_without_stated_resources_the_pods_own_are_measured(plan, bloom):
    planned = plan(bloom)
    memory = next(tier for tier in planned["tiers"] if tier["name"] == "cpu")

    assert memory["owned"] > 0


def test_stated_resources_that_cannot_be_read_are_refused(run, bloom):
    code, _, err = run("plan", bloom, "--gpus", "two")

    assert code == 78
    assert "The stated resources cannot be read: 'two' is no amount of memory" in err


@pytest.mark.parametrize("flag", ["--max_model_len", "--max-model-len"])
@pytest.mark.parametrize("joined", [True, False])
def test_underscores_and_dashes_both_work(plan, bloom, flag, joined):
    words = [f"{flag}=48"] if joined else [flag, "48"]

    assert plan(bloom, *STATED, *words)["max_model_len"] == 48


def test_dashes_in_a_value_stay(run):
    _, _, err = run("plan", "--model-dir=/no-such-dir")

    assert "/no-such-dir" in err


def test_a_repeated_flags_last_value_wins(plan, bloom):
    planned = plan(bloom, *STATED, "--max_model_len", "48", "--max-model-len=64")

    assert planned["max_model_len"] == 64


def test_a_repeated_switchs_last_value_wins(run, tmp_path):
    folder = str(make_checkpoint(tmp_path, "bloom", pickle=True))

    assert run("plan", "--allow-pickle", "--allow_pickle=false", folder, *STATED)[0] == 78
    assert run("plan", folder, *STATED, "--allow_pickle=false", "--allow-pickle")[0] == 0


def test_flags_reach_the_plan(plan, bloom):
    planned = plan(
        bloom, *STATED, "--dtype", "bfloat16", "--max_concurrency", "3", "--max_length=16"
    )

    assert planned["dtype"] == "bfloat16"
    assert planned["max_model_len"] == 16
    assert planned["kv_tokens"] == 48


def test_the_setup_config_beside_the_model_reaches_the_plan(plan, bloom):
    with open(f"{bloom}/setup_config.json", "w") as file:
        json.dump({"max_length": "80", "torch_dtype": "float16"}, file)
    planned = plan(bloom, *STATED)

    assert (planned["dtype"], planned["max_model_len"]) == ("float16", 160)


@pytest.mark.parametrize("command", ["plan", "serve"])
@pytest.mark.parametrize("flag", ["--max_memmory", "--max-memmory"])
def test_an_unknown_flag_names_the_nearest(run, command, flag):
    code, _, err = run(command, flag, "{}")

    assert code == 78
    assert "predictor: Unknown flag --max_memmory; did you mean --max_memory?\n" in err


def test_a_flag_is_not_guessed_from_its_beginning(run):
    assert run("serve", "--max_mem", "{}")[0] == 78


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "The following arguments are required: command."),
        (("serve", "--model_name"), "Argument --model_name: expected one argument."),
        (("plan", "--output", "xml"), "Argument --output: invalid choice: 'xml'"),
        (("plan", "one", "two"), "Unexpected argument 'two'."),
    ],
)
def test_a_wrong_command_line_is_one_sentence(run, termination_log, arguments, sentence):
    code, _, err = run(*arguments)

    assert code == 78
    assert err.startswith(f"predictor: {sentence}")
    assert termination_log.read_text().startswith(sentence)


def test_the_last_value_wins_under_either_name_of_a_setting(plan, bloom):
    own = ("--dtype=bfloat16", "--torch_dtype=float16")

    assert plan(bloom, *STATED, *own)["dtype"] == "float16"
    assert plan(bloom, *STATED, *reversed(own))["dtype"] == "bfloat16"


def test_a_model_that_fits_its_gpu_needs_no_main_memory(plan, bloom):
    tiers = plan(bloom, "--gpus", "1GiB")["tiers"]

    assert [tier["units"] > 0 for tier in tiers] == [True, False, False]


def test_a_max_length_beyond_the_models_positions_is_cut_and_a_max_model_len_refused(
    run, plan, tmp_path
):
    CONFIGS["gpt2"].save_pretrained(tmp_path)

    config = tmp_path / "setup_config.json"
    for given, planned in ((200, 256), (100, 200)):
        config.write_text(json.dumps({"max_length": given}))
        assert plan(str(tmp_path), *STATED)["max_model_len"] == planned
    config.unlink()
    assert plan(str(tmp_path), *STATED, "--max_length", "100")["max_model_len"] == 100
    code, _, err = run("plan", str(tmp_path), *STATED, "--max_model_len", "257")
    assert code == 78
    assert "257 is longer than the 256 positions" in err


def test_last_words_go_to_stderr_and_to_the_termination_log(run, bloom, termination_log):
    code, out, err = run("plan", bloom, "--memory", "632MiB")
    sentence = termination_log.read_text()

    assert code == 78
    assert out == ""
    assert sentence.startswith("BloomForCausalLM in float32 does not fit: main memory lacks ")
    assert f"predictor: {sentence}\n" in err


def test_last_words_are_cut_to_what_kubernetes_takes(run, termination_log):
    run("plan", "--model_dir", "/" + "x/" * 4000)

    assert len(termination_log.read_bytes()) == 4096


def test_without_a_termination_log_none_is_made(run, termination_log):
    termination_log.unlink()

    assert run("plan", "--model_dir", "/nowhere")[0] == 78
    assert not termination_log.exists()


def test_a_directory_that_is_not_there_is_reported(run):
    code, _, err = run("plan", "/nowhere", *STATED)

    assert code == 78
    assert "There is no model directory /nowhere." in err


def test_plan_reads_no_weight(plan, tmp_path):
    """The data of a 7 GB model is a hole: its header is there, not a block of it is."""
    folder = tmp_path / "hole"
    config = CONFIGS["llama"].__class__(vocab_size=32_000, num_hidden_layers=16)
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    header, size = {}, 0
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, weight in model.state_dict().items():
        offsets = [size, size + weight.nbytes]
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": offsets}
        size += weight.nbytes
    file, text = folder / "model.safetensors", json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(file, 8 + len(text) + size)
    before = read_bytes()

    planned = plan(str(folder), "--gpus", "8GiB", "--memory", "64GiB", "--max_model_len", "128")

    assert planned["dtype"] == "bfloat16"
    assert file.stat().st_blocks * 512 <= len(text) + 8192
    assert read_bytes() - before < 50 * 10**6


def read_bytes():
    """Return the bytes that this process has read so far (proc(5), rchar)."""
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


def in_a_new_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


HEAVY = {"torch", "transformers", "accelerate", "kserve", "kubernetes", "fastapi", "grpc", "numpy"}


@pytest.mark.parametrize("module", ["predictor", "predictor.cli", "predictor.pod"])
def test_importing_it_imports_nothing_heavy(module):
    imported = in_a_new_process(f"import sys, {module}; print(*sys.modules)").stdout.split()

    assert module in imported
    assert not HEAVY & set(imported)


def test_the_deciding_modules_work_without_torch():
    code = (
        "import sys, predictor.placement.planner, predictor.placement.report, "
        "predictor.deployment.render; print(*sys.modules)"
    )

    assert not HEAVY & set(in_a_new_process(code).stdout.split())


def test_python_m_predictor_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "predictor", "--version"], capture_output=True, text=True
    )

    assert (done.returncode, done.stdout) == (0, "0.1.0\n")


def test_the_process_ends_with_the_errors_exit_code(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "predictor", "serve", "--bogus_flag"], capture_output=True, text=True
    )

    assert done.returncode == 78
    assert done.stderr.splitlines()[-1].startswith("predictor: Unknown flag --bogus_flag")


def test_no_log_line_of_a_plan_has_the_secrets_of_a_url(tmp_path):
    with web(tmp_path) as (url, _):
        secret = f"{url.replace('://', '://user:hidden@')}?signature=hidden"
        done = subprocess.run(
            [sys.executable, "-m", "predictor", "plan", "--model_uri", secret, *STATED],
            capture_output=True,
            text=True,
        )

    assert done.returncode == 78
    assert "model.safetensors" in done.stderr
    assert "hidden" not in done.stdout + done.stderr
