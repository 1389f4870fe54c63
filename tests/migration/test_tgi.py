"""The command ``import-tgi``: a deployment and a report of how TGI was started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from predictor import cli
from predictor.command_line import parse_arguments
from predictor.migration.tgi_launcher import Option, read_launch
from predictor.settings import Settings, read_settings

Run = Callable[..., tuple[int, str, str]]

MANIFEST = """
apiVersion: v1
kind: Service
metadata: {name: tgi}
---
apiVersion: apps/v1
kind: Deployment
spec:
  template:
    spec:
      containers:
      - {name: proxy, image: envoy, args: [--port, "1"]}
      - name: tgi
        image: ghcr.io/huggingface/text-generation-inference:3.3.7
        command: [text-generation-launcher]
        args: [--max-total-tokens=4096, --trust-remote-code]
        env:
        - {name: MODEL_ID, value: org/llama}
        - {name: MAX_TOTAL_TOKENS, value: "512"}
        - {name: PORT, value: "80"}
        - {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: hub, key: token}}}
        - {name: OMP_NUM_THREADS, value: "4"}
        resources: {limits: {nvidia.com/gpu: 4}}
"""

LAUGHS = "a0: &a0 [x]\n" + "\n".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)
)
"""YAML of a kilobyte whose aliases stand for 9 ** 39 texts."""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process; return its exit code, report and error sentence."""
    monkeypatch.setattr(cli, "TERMINATION_LOG", Path("/nowhere"))

    def main(*arguments: object) -> tuple[int, str, str]:
        code = cli.main(["import-tgi", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()[-1].removeprefix("predictor: ") if err else ""

    return main


def served(folder: Path) -> tuple[Settings, Any]:
    """Returns the settings of the InferenceService in a folder, and its model."""
    documents = list(yaml.safe_load_all((folder / "inferenceservice.yaml").read_text()))
    model = documents[-1]["spec"]["predictor"]["model"]
    command, flags = parse_arguments(["serve", *model["args"]])
    assert command == "serve"
    return read_settings(flags, environ={}), model


def outcomes(report: str) -> dict[str, str]:
    """Returns the outcome of each flag in a report."""
    words = ("taken over", "done otherwise", "no counterpart")
    lines = [line.split() for line in report.splitlines() if line.startswith("  ")]
    return {
        line[0]: word
        for line in lines
        for word in words
        if word in " ".join(line[1:]) and line[0] != "key"
    }


def test_arguments_become_a_deployment_and_a_report(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    code, out, _ = run(
        *("--into", folder, "--", "--model-id", "org/gpt", "--revision=main", "-p", "80"),
        *("--max-total-tokens", "2048", "--num-shard", "2", "--quantize", "bitsandbytes-nf4"),
        *("--json-output", "--max-waiting-tokens", "9", "--surprise", "x"),
    )
    assert code == 0, out
    assert outcomes(out) == {
        "model_id": "taken over",
        "revision": "taken over",
        "port": "no counterpart",
        "max_total_tokens": "taken over",
        "num_shard": "done otherwise",
        "quantize": "done otherwise",
        "json_output": "taken over",
        "max_waiting_tokens": "no counterpart",
        "surprise": "no counterpart",
    }
    settings, model = served(folder)
    assert (settings.model_id, settings.model_revision) == ("org/gpt", "main")
    assert (settings.max_model_len, settings.weights_dtype) == (2048, "int4")
    assert (settings.tgi_api, settings.log_format) == (True, "json")
    assert model["resources"]["limits"]["nvidia.com/gpu"] == 2
    report = (folder / "tgi-report.md").read_text()
    assert report.startswith("# org/gpt, imported from Text Generation Inference\n")
    values = yaml.safe_load((folder / "helm-values.yaml").read_text())
    assert values["model"] == {"id": "org/gpt", "revision": "main"}
    assert values["settings"]["tgi_api"] is True


def test_a_flag_without_a_value_sets_nothing(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("--into", tmp_path / "made", "--", "--model-id=org/gpt", "--revision=")
    assert code == 0, out
    assert outcomes(out) == {"model_id": "taken over", "revision": "no counterpart"}


def test_a_manifest_has_arguments_variables_and_gpus(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tgi.yaml").write_text(MANIFEST)
    code, out, _ = run("--into", tmp_path / "made", "--manifest", tmp_path / "tgi.yaml")
    assert code == 0, out
    settings, model = served(tmp_path / "made")
    assert (settings.model_id, settings.max_model_len) == ("org/llama", 4096)
    assert settings.trust_remote_code
    assert model["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert "another value of the same flag is stronger" in out
    assert "OMP_NUM_THREADS" not in out


CONTAINER = """
containers:
- image: text-generation-inference
  args: [--model-id, $(MODEL), --revision=v$(MAJOR), --port, $$(PORT), --dtype, $(TYPE)]
  env:
  - {name: OWNER, value: org}
  - {name: MODEL, value: $(OWNER)/llama}
  - {name: MAJOR, value: "3"}
  - {name: TYPE, valueFrom: {configMapKeyRef: {name: c, key: type}}}
  - {name: MAX_TOTAL_TOKENS, value: $(LATER)}
  - {name: LATER, value: "5"}
"""


def test_arguments_of_a_container_refer_to_its_variables_as_kubernetes_has_it(
    run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "tgi.yaml"
    file.write_text(CONTAINER)
    launch = read_launch([], manifest=file)
    assert launch.value("model_id") == "org/llama"
    assert launch.value("revision") == "v3"
    assert launch.value("port") == "$(PORT)"
    code, out, _ = run("--into", tmp_path / "made", "--manifest", file)
    assert code == 0, out
    settings, _ = served(tmp_path / "made")
    assert (settings.model_id, settings.model_revision) == ("org/llama", "v3")
    assert outcomes(out)["dtype"] == outcomes(out)["max_total_tokens"] == "no counterpart"
    assert "the value of the variable 'TYPE' is not in the manifest" in " ".join(out.split())


def test_a_model_whose_name_is_not_in_the_manifest_is_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "tgi.yaml"
    file.write_text(CONTAINER.replace("{name: MODEL, value: $(OWNER)/llama}", "{name: MODEL}"))
    code, _, error = run("--into", tmp_path / "made", "--manifest", file)
    sentence = "--model-id is the variable 'MODEL', whose value is not in the manifest."
    assert (code, error) == (78, sentence)


def test_variables_come_from_a_file_and_a_secret_is_not_shown(run: Run, tmp_path: Path) -> None:
    variables = tmp_path / "tgi.env"
    variables.write_text(
        "# TGI\nMODEL_ID=/data/model\nexport TRUST_REMOTE_CODE=false\nAPI_KEY='sk-secret'\n"
        "NGROK_AUTHTOKEN=sk-secret\nMAX_BATCH_SIZE=\nPATH=/bin\n"
    )
    code, out, _ = run("--into", tmp_path / "made", "--env-file", variables)
    assert code == 0, out
    for file in (tmp_path / "made").iterdir():
        assert "sk-secret" not in file.read_text()
    assert "sk-secret" not in out
    settings, model = served(tmp_path / "made")
    assert not settings.trust_remote_code
    assert model["storageUri"].startswith("pvc://")
    assert "model_id" in outcomes(out)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "There is nothing to import; give the arguments of text-generation-launcher after"),
        (["--", "--port", "80"], "No --model-id is given"),
        (["--", "org/gpt"], "'org/gpt' is no flag of text-generation-launcher."),
        (["--", "--model-id", "a/b", "--max-total-tokens", "many"], "max_model_len: "),
        (["--", "--model-id", "a/b", "--dtype", "float7"], "dtype: "),
        (["--manifest", "/nowhere.yaml"], "/nowhere.yaml cannot be read: No such file"),
        (["--env_file", "/nowhere.env"], "/nowhere.env cannot be read: No such file"),
    ],
)
def test_what_cannot_be_imported_ends_with_a_sentence(
    run: Run, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    code, _, error = run("--into", tmp_path / "made", *arguments)
    assert (code, error[: len(sentence)]) == (78, sentence)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"a: [", "is no valid YAML."),
        (b"a: b", "has no container whose image is text-generation-inference."),
        (b"[" * 100_000, "is no valid YAML."),
        (b"\xff\xfe\xff", "is not UTF-8."),
        (b" " * 2**21, "is larger than 1 MiB."),
        (b"x: &a [*a]", "has no container whose image is text-generation-inference."),
        (LAUGHS.encode(), "has no container whose image is text-generation-inference."),
        (
            b"containers: [{image: a}, {image: b}]",
            "has no container whose image is text-generation-inference.",
        ),
    ],
)
def test_a_manifest_of_another_kind_is_refused(
    run: Run, tmp_path: Path, text: bytes, sentence: str
) -> None:
    file = tmp_path / "tgi.yaml"
    file.write_bytes(text)
    code, _, error = run("--into", tmp_path / "made", "--manifest", file)
    assert (code, error) == (78, f"{file} {sentence}")


@pytest.mark.parametrize(
    "container",
    [
        "{image: text-generation-inference, args: 5}",
        "{image: text-generation-inference, args: --model-id}",
        "{image: text-generation-inference, env: 5, resources: 5}",
        "{image: text-generation-inference, env: [5, {name: MODEL_ID}], resources: {limits: []}}",
    ],
)
def test_a_container_of_another_form_is_no_crash(run: Run, tmp_path: Path, container: str) -> None:
    file = tmp_path / "tgi.yaml"
    file.write_text(f"containers: [{container}]")
    code, _, error = run("--into", tmp_path / "made", "--manifest", file)
    assert code == 78
    assert "nobody expected" not in error


def test_a_flag_wins_over_its_variable_and_the_last_flag_over_the_first(tmp_path: Path) -> None:
    variables = tmp_path / "tgi.env"
    variables.write_text("MODEL_ID=c\nMAX_BATCH_SIZE=7\n")
    words = ["text-generation-launcher", "--model-id", "a", "--model-id=b", "--trust-remote-code"]
    launch = read_launch(words, env_file=variables)
    assert launch.value("model_id") == "b"
    assert launch.value("max_batch_size") == "7"
    assert launch.value("port") is None
    assert Option("arguments", "trust_remote_code", "true") in launch.options
