"""Archives that TorchServe's own archiver made become directories that are served."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from predictor.errors import ArchiveError, ConfigurationError
from predictor.migration.importing import import_torchserve
from predictor.settings import read_settings
from tests.conftest import Checkpoints
from tests.deploy import objects
from tests.deploy.helm import read, render
from tests.migration.packing import LAYOUTS, SEED, hollow_model, pack, seed
from tests.serving import bring_up

PROMPT = list(b"The weather is")

LLAMA = """
minWorkers: 1
maxWorkers: 1
maxBatchDelay: 100
responseTimeout: 1200
deviceType: "gpu"

handler:
    model_name: "meta-llama/Meta-Llama-3-70B-Instruct"
    model_path: "model/models--meta-llama--Llama/snapshots/5fcb29"
    max_length: 50
    max_new_tokens: 14
    manual_seed: 40
    temperature: 0.5
"""


@pytest.fixture
def bloom(checkpoints: Checkpoints) -> Path:
    return checkpoints("bloom")


def settings_of(folder: Path) -> Any:
    return read_settings({"model_dir": str(folder)}, environ={})


def greedy(folder: Path, **flags: Any) -> list[int]:
    return bring_up(folder, **flags).tokens(PROMPT, max_new_tokens=12, temperature=0.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_accelerate_example_is_served_as_its_model_is(
    tmp_path: Path, bloom: Path, layout: str
) -> None:
    # As the example itself needs it where there is no GPU.
    archive = seed(tmp_path / "packed", bloom, layout=layout, max_memory={"cpu": "10GB"})
    import_torchserve(archive, tmp_path / "imported")
    settings = settings_of(tmp_path / "imported")

    assert (settings.model_name, settings.model_version) == ("bloom", "1.0")
    assert (settings.dtype, settings.max_length, settings.device_map) == ("float32", 80, "auto")
    assert settings.max_memory == {"cpu": 10**10}
    assert settings.offload_folder == tmp_path / "imported" / "offload"
    assert settings.torchserve_api
    assert settings.torchserve_semantics
    assert greedy(tmp_path / "imported") == greedy(bloom)


def test_torchserve_files_are_not_copied(tmp_path: Path, bloom: Path) -> None:
    import_torchserve(seed(tmp_path / "packed", bloom), tmp_path / "imported")
    made = {
        "setup_config.json",
        "helm-values.yaml",
        "inferenceservice.yaml",
        "torchserve-report.md",
    }

    assert {file.name for file in (tmp_path / "imported").iterdir()} == made | {
        file.name for file in bloom.iterdir()
    }
    for file in bloom.iterdir():
        assert (tmp_path / "imported" / file.name).read_bytes() == file.read_bytes()


def test_a_model_flat_in_the_archive_is_separated_from_the_handlers_files(
    tmp_path: Path, bloom: Path
) -> None:
    """The archiver puts the files of a directory in ``--extra-files`` at the archive's root."""
    extra = {file.name: file for file in bloom.iterdir()}
    archive = pack(tmp_path / "packed", {**extra, "setup_config.json": SEED})
    import_torchserve(archive, tmp_path / "imported")
    names = {file.name for file in (tmp_path / "imported").iterdir()}

    assert names >= extra.keys()
    assert not names & {"custom_handler.py", "requirements.txt", "MAR-INF"}


def test_the_handlers_code_is_not_executed(tmp_path: Path, bloom: Path) -> None:
    import_torchserve(seed(tmp_path / "packed", bloom), tmp_path / "imported")

    assert "executed" in (tmp_path / "packed" / "custom_handler.py").read_text()
    assert not (tmp_path / "packed" / "executed").exists()


def llama(folder: Path, model: Path, config: str = LLAMA) -> Path:
    """Return a directory as in the Llama example: the hub's cache is moved into it afterwards."""
    made = pack(folder, {}, layout="no-archive", name="llama", config=config)
    snapshot = made / "model/models--meta-llama--Llama/snapshots/5fcb29"
    snapshot.mkdir(parents=True)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    for file in model.iterdir():
        (blobs / f"hash-of-{file.name}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/hash-of-{file.name}")
    return made


def test_the_llama_example_is_served_as_its_model_is(
    tmp_path: Path, checkpoints: Checkpoints
) -> None:
    model = checkpoints("llama")
    into = tmp_path / "imported"
    import_torchserve(llama(tmp_path / "packed", model), into)
    settings = settings_of(into)
    generation = settings.override_generation_config

    assert (settings.max_model_len, settings.max_length) == (64, None)
    assert settings.request_timeout == 1200
    assert not settings.torchserve_semantics
    assert (generation["max_new_tokens"], generation["temperature"]) == (14, 0.5)
    assert generation["do_sample"] is True
    assert greedy(into, max_model_len=64) == greedy(model)


def test_weights_are_linked_and_what_is_written_anew_is_not(
    tmp_path: Path, checkpoints: Checkpoints
) -> None:
    archive = llama(tmp_path / "packed", checkpoints("llama"))
    blobs = archive / "model/models--meta-llama--Llama/blobs"
    before = (blobs / "hash-of-generation_config.json").read_bytes()
    import_torchserve(archive, tmp_path / "imported")
    (weights,) = blobs.glob("hash-of-model-00001*")

    assert os.path.samefile(weights, tmp_path / "imported" / weights.name.removeprefix("hash-of-"))
    assert (blobs / "hash-of-generation_config.json").read_bytes() == before


def test_a_length_beyond_the_models_positions_is_cut(
    tmp_path: Path, checkpoints: Checkpoints
) -> None:
    config = LLAMA.replace("max_length: 50", "max_length: 4096")
    import_torchserve(llama(tmp_path / "packed", checkpoints("llama"), config), tmp_path / "in")

    assert settings_of(tmp_path / "in").max_model_len == 256  # its max_position_embeddings


def test_a_model_of_the_hub_is_named(tmp_path: Path) -> None:
    archive = pack(tmp_path / "packed", {}, name="llama", config=LLAMA)
    report = import_torchserve(archive, tmp_path / "imported")

    assert settings_of(tmp_path / "imported").model_id == "meta-llama/Meta-Llama-3-70B-Instruct"
    (values,) = read(tmp_path / "imported/helm-values.yaml")
    assert values["model"]["id"] == "meta-llama/Meta-Llama-3-70B-Instruct"
    assert values["resources"]["limits"]["memory"] == "16Gi"
    assert values["offload"]["persistence"]["size"] == "64Gi"
    made = read(tmp_path / "imported/inferenceservice.yaml")
    assert [objects.faults(one) for one in made] == [[], []]
    assert "InferenceService" in {one["kind"] for one in render(values)}
    head = (tmp_path / "imported/helm-values.yaml").read_text().splitlines()[:3]
    assert "16Gi and 64Gi stand for it" in head[1]
    assert head[2].startswith("# predictor plan meta-llama/Meta-Llama-3-70B-Instruct --gpus ")
    assert "model.uri" not in report.steps[-1]
    defaults = {"max_new_tokens": 14, "temperature": 0.5, "do_sample": True}
    assert settings_of(tmp_path / "imported").override_generation_config.items() >= defaults.items()
    assert values["settings"]["override_generation_config"].items() >= defaults.items()
    (service,) = [one for one in made if one["kind"] == "InferenceService"]
    arguments = service["spec"]["predictor"]["model"]["args"]
    (flag,) = [each for each in arguments if each.startswith("--override_generation_config=")]
    assert json.loads(flag.partition("=")[2]).items() >= defaults.items()


SNAPSHOT = {
    "name": "startup.cfg",
    "modelCount": 2,
    "models": {
        "other": {"1.0": {"marName": "other.mar", "batchSize": 4}},
        "bloom": {
            "1.0": {
                "defaultVersion": True,
                "marName": "bloom.mar",
                "minWorkers": 1,
                "maxWorkers": 5,
                "batchSize": 2,
                "maxBatchDelay": 5000,
                "responseTimeout": 120,
            }
        },
    },
}


def test_a_model_store_of_kserves_is_imported_with_its_snapshot(
    tmp_path: Path, bloom: Path
) -> None:
    archive = seed(tmp_path / "pv", bloom)
    config = tmp_path / "pv/config/config.properties"
    config.parent.mkdir()
    config.write_text(
        "inference_address=http://0.0.0.0:8085\njob_queue_size=10\n"
        f"model_snapshot={json.dumps(SNAPSHOT)}\n"
    )
    report = import_torchserve(archive, tmp_path / "imported", ts_config=config)
    settings = settings_of(tmp_path / "imported")

    assert (settings.max_batch_size, settings.max_requests) == (64, 74)
    assert settings.request_timeout == 120
    assert "import 1 more by themselves" in report.table()


@pytest.mark.parametrize("offloaded", [True, False])
def test_a_cluster_takes_what_is_written_for_it(
    tmp_path: Path, bloom: Path, offloaded: bool
) -> None:
    folder = "offload" if offloaded else None
    into = tmp_path / "imported"
    import_torchserve(seed(tmp_path / "packed", bloom, offload_folder=folder), into)
    (values,) = read(into / "helm-values.yaml")
    by_kind = {one["kind"]: one for one in read(into / "inferenceservice.yaml")}
    predictor = by_kind["InferenceService"]["spec"]["predictor"]

    assert [objects.faults(one) for one in by_kind.values()] == [[] for _ in by_kind]
    assert ("PersistentVolumeClaim" in by_kind) is offloaded
    assert values["offload"]["enabled"] is offloaded
    assert predictor["model"]["resources"]["limits"] == {
        "cpu": 4,
        "memory": "5Gi",
        "nvidia.com/gpu": 1,
    }
    assert "--offload_folder=offload" not in predictor["model"]["args"]
    assert "--max_length=80" in predictor["model"]["args"]
    made = {one["kind"] for one in render(values)}
    assert "InferenceService" in made


def test_memory_holds_the_weights_as_they_are_served(tmp_path: Path, checkpoints: Any) -> None:
    """The weights take 2 GiB in 32 bits, 1 GiB in 16; 4 GiB are added."""
    model = hollow_model(tmp_path / "model", 2**31, checkpoints("bloom") / "config.json")
    archive = pack(
        tmp_path / "packed",
        {"setup_config.json": {**SEED, "torch_dtype": "float16"}},
        layout="no-archive",
    )
    model.rename(archive / "model")
    import_torchserve(archive, tmp_path / "imported")
    values = yaml.safe_load((tmp_path / "imported/helm-values.yaml").read_text())

    assert values["resources"]["limits"]["memory"] == "5Gi"
    assert values["offload"]["persistence"]["size"] == "2Gi"  # with what a file system keeps


def test_pickled_weights_are_copied_and_the_report_names_their_flag(
    tmp_path: Path, checkpoints: Checkpoints
) -> None:
    model = checkpoints("bloom", pickle=True)
    report = import_torchserve(seed(tmp_path / "packed", model), tmp_path / "imported")

    assert report.steps[0] == f"predictor serve --model_dir {tmp_path / 'imported'} --allow_pickle"
    assert report.steps[-1].endswith(" --set settings.allow_pickle=true")
    assert not settings_of(tmp_path / "imported").allow_pickle


def test_an_archive_cannot_grant_trust_to_its_own_code(tmp_path: Path, bloom: Path) -> None:
    wanted = {"trust_remote_code": True, "allow_pickle": True, "enable_load_unload": True}
    import_torchserve(seed(tmp_path / "packed", bloom, **wanted), tmp_path / "imported")
    written = json.loads((tmp_path / "imported/setup_config.json").read_bytes())

    assert not written.keys() & wanted.keys()


def of_its_own_code(folder: Path, model: Path) -> Path:
    """Return a copy of a model whose config needs Python code that lies beside it."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_bytes()) | {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(folder / 'executed')!r}, 'w').close()\n")
    return folder


@pytest.mark.parametrize("pickle", [True, False])
def test_a_model_with_its_own_code_is_imported_and_the_report_names_its_flag(
    tmp_path: Path, checkpoints: Checkpoints, pickle: bool
) -> None:
    model = of_its_own_code(tmp_path / "model", checkpoints("bloom", pickle=pickle))
    report = import_torchserve(seed(tmp_path / "packed", model), tmp_path / "imported")
    flags = " --allow_pickle --trust_remote_code" if pickle else " --trust_remote_code"

    assert report.steps[0].endswith(f"{tmp_path / 'imported'}{flags}")
    assert (tmp_path / "imported/own.py").exists()
    written = (tmp_path / "imported/inferenceservice.yaml").read_text()
    assert "# It is served with --trust_remote_code only: add it if you" in written
    assert ("# It is served with --allow_pickle only" in written) is pickle
    assert "trust_remote_code" not in str(read(tmp_path / "imported/inferenceservice.yaml"))
    assert not (model / "executed").exists()


def test_the_report_names_the_flag_of_a_tokenizer_with_its_own_code(
    tmp_path: Path, bloom: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(bloom, model)
    file = model / "tokenizer_config.json"
    config = json.loads(file.read_bytes()) | {"auto_map": {"AutoTokenizer": ["own.Own", None]}}
    config["tokenizer_class"] = "Own"
    file.write_text(json.dumps(config))
    report = import_torchserve(seed(tmp_path / "packed", model), tmp_path / "imported")

    assert report.steps[0].endswith(" --trust_remote_code")


def test_a_model_of_its_own_code_must_be_whole_too(tmp_path: Path, bloom: Path) -> None:
    model = of_its_own_code(tmp_path / "model", bloom)
    next(model.glob("*00003-of*")).unlink()

    with pytest.raises(ArchiveError, match=r"its model is incomplete: model-00003-of-00007\."):
        import_torchserve(seed(tmp_path / "packed", model), tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_the_report_lies_in_the_directory(tmp_path: Path, bloom: Path) -> None:
    report = import_torchserve(seed(tmp_path / "packed", bloom), tmp_path / "imported")

    assert (tmp_path / "imported/torchserve-report.md").read_text() == report.markdown()


def test_a_directory_that_is_empty_is_replaced(tmp_path: Path, bloom: Path) -> None:
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported").chmod(0o2555)
    import_torchserve(seed(tmp_path / "packed", bloom), tmp_path / "imported")

    assert (tmp_path / "imported").stat().st_mode & 0o7777 == 0o2555

    assert (tmp_path / "imported/config.json").exists()


def test_an_invalid_setting_is_reported_before_anything_is_copied(
    tmp_path: Path, bloom: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    archive = seed(tmp_path / "packed", bloom, torch_dtype="int8")

    with pytest.raises(ArchiveError, match=r"setup_config\.json cannot be taken over: dtype: "):
        import_torchserve(archive, tmp_path / "imported")
    assert not any(message.startswith("Taking") for message in caplog.messages)


def test_a_model_larger_than_the_free_space_is_reported_with_both_sizes(
    tmp_path: Path, bloom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = seed(tmp_path / "packed", bloom)
    free = shutil.disk_usage(tmp_path)._replace(free=2 * 1024**2)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)

    with pytest.raises(ConfigurationError) as caught:
        import_torchserve(archive, tmp_path / "imported")
    assert re.fullmatch(
        r"The model takes 2\.\d\d MiB in .*, and 2\.00 MiB are free there\.", str(caught.value)
    )
