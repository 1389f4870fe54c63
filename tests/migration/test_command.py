"""The command ``import-torchserve``: its report, its error sentences, and interruptions."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from predictor import cli
from predictor.migration.staging import staged
from tests import forked
from tests.conftest import Checkpoints
from tests.migration import hostile
from tests.migration.packing import MANIFEST, SEED, hollow_model, manifest, seed, store, zip_model
from tests.volumes import read_only, tmpfs

MIB = 1024**2

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process; return its exit code, report and error sentence."""
    monkeypatch.setattr(cli, "TERMINATION_LOG", Path("/nowhere"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def main(*arguments: object) -> tuple[int, str, str]:
        code = cli.main(["import-torchserve", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()[-1].removeprefix("predictor: ") if err else ""

    return main


@pytest.fixture
def bloom(checkpoints: Checkpoints) -> Path:
    return checkpoints("bloom")


@pytest.mark.parametrize("flag", ["--ts_config", "--ts-config"])
def test_the_report_is_printed(run: Run, tmp_path: Path, bloom: Path, flag: str) -> None:
    archive = seed(tmp_path / "packed", bloom)
    config = tmp_path / "config.properties"
    config.write_text("job_queue_size=9\n")
    code, out, _ = run(archive, "--into", tmp_path / "imported", flag, config)
    lines = out.splitlines()

    assert code == 0
    assert lines[0] == f"Imported bloom.mar into {tmp_path / 'imported'}"
    assert next(line.split() for line in lines if "job_queue_size" in line)[:4] == [
        *("job_queue_size", "9", "taken", "over")
    ]
    assert lines[-4:] == [
        "next:",
        f"  predictor serve --model_dir {tmp_path / 'imported'}",
        "  curl -T sample_text.txt http://localhost:8080/predictions/bloom",
        f"  helm install bloom helm/ --values {tmp_path / 'imported'}/helm-values.yaml "
        "--set model.uri=pvc://CLAIM/PATH",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "The following arguments are required: ARCHIVE, --into."),
        (("a.mar",), "The following arguments are required: --into."),
        (("a.mar", "--into", "b", "--int", "c"), "Unknown flag --int"),
        (("a.mar", "--into", "b", "--dtype", "c"), "Unexpected argument '--dtype'."),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    run: Run, arguments: tuple[str, ...], sentence: str
) -> None:
    code, _, sentence = run(*arguments)

    assert code == 78
    assert sentence.startswith(sentence)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no manifest": ({MANIFEST: None}, "is no archive of TorchServe's: it has no MAR-INF/MANIFEST"),
    "a manifest that is no JSON": ({MANIFEST: b"{"}, "MANIFEST.json cannot be read as JSON"),
    "a manifest that is a list": ({MANIFEST: b"[]"}, "must hold one JSON object"),
    "a manifest of nothing": ({MANIFEST: b"{}"}, "MANIFEST.json describes no model"),
    "a manifest nested deeply": ({MANIFEST: b"[" * 200_000}, "it is nested too deeply"),
    "a model without a name": ({MANIFEST: manifest(modelName=None)}, "gives the model no name"),
    "a name that leads outside": (
        {MANIFEST: manifest(modelName="../a")},
        "gives the model no name",
    ),
    "a configuration that is not there": (
        {MANIFEST: manifest(configFile="gone.yaml")},
        "names the configuration 'gone.yaml', which is not there",
    ),
    "YAML that is none": ({"model-config.yaml": b"a: [1"}, "model-config.yaml cannot be read as Y"),
    "YAML that makes objects": (
        {"model-config.yaml": b"a: !!python/object/apply:os.system [exit]"},
        "model-config.yaml cannot be read as YAML",
    ),
    "YAML that grows": (
        {"model-config.yaml": b"a: &a {b: c}\nd: {<<: [*a, *a]}"},
        "it has aliases, which are not read",
    ),
    **{
        f"YAML with {value}": (
            {"model-config.yaml": b"a: " + value.encode()},
            "model-config.yaml cannot be read as YAML",
        )
        for value in (
            *("!!int ''", "!!int x", "!!bool maybe", "!!float x", "!!binary aGk=", "!!set {a}"),
            *("1:" * 200 + "1.5", "{[1]: 2}"),
        )
    },
    "a snapshot that is half of a character": (
        {"config.properties": b"model_snapshot=\\ud800"},
        "model_snapshot in config.properties cannot be read as JSON",
    ),
    "an index that leads outside": (
        {
            "model.zip": {
                "config.json": b'{"model_type": "bloom"}',
                "model.safetensors.index.json": b'{"weight_map": {"w": "../../secret"}}',
            }
        },
        "model.safetensors.index.json names a file outside of its directory",
    ),
    "YAML with a number that cannot be written": (
        {"model-config.yaml": b"handler: {0x" + b"f" * 10_000 + b": 1}"},
        "it has a number of hundreds of digits",
    ),
    "YAML nested deeply": (
        {"model-config.yaml": b"[" * 1_000_000},
        "it is longer or nested more deeply than a configuration is",
    ),
    "YAML of a hundred thousand keys": (
        {"model-config.yaml": b"".join(b"k%d: v\n" % number for number in range(80_000))},
        "it is longer or nested more deeply than a configuration is",
    ),
    "YAML of a list": ({"model-config.yaml": b"- a"}, "must hold one YAML object"),
    "a setup that is no JSON": (
        {"setup_config.json": b"{'a'}"},
        "setup_config.json cannot be read",
    ),
    "a setup that is a number": ({"setup_config.json": b"1"}, "must hold one JSON object"),
    "a setup that is too large": (
        {"setup_config.json": b'{"a": "' + b"x" * MIB + b'"}'},
        "which is over 1.00 MiB",
    ),
    "a dtype that is none": (
        {"setup_config.json": {**SEED, "torch_dtype": "int8"}},
        "setup_config.json cannot be taken over: dtype: ",
    ),
    "a length that is none": (
        {"setup_config.json": {**SEED, "max_length": "many"}},
        "setup_config.json cannot be taken over: max_length: ",
    ),
    "properties cut in an escape": (
        {"config.properties": b"a=\\u12"},
        "config.properties cannot be read as properties",
    ),
    "a snapshot that is no JSON": (
        {"config.properties": b"model_snapshot={"},
        "model_snapshot in config.properties cannot be read as JSON",
    ),
    "a snapshot of no models": (
        {"config.properties": b'model_snapshot={"models": 1}'},
        "model_snapshot in config.properties must hold an object of models",
    ),
    "no model": ({"model.zip": None}, "holds no model: neither config.json nor a model.zip"),
    "a folder outside of the archive": (
        {"model.zip": None, "setup_config.json": b'{"model_path": "/models/13B/"}'},
        "holds no model: model_path names '/models/13B/', a folder outside of the archive. A copy "
        "of that folder with this setup_config.json in it can be served",
    ),
    "a folder outside of the archive, for the handler": (
        {
            "model.zip": None,
            "setup_config.json": b"{}",
            "model-config.yaml": b"handler: {model_dir: models/x}",
        },
        "model_dir names 'models/x', a folder outside of the archive. A copy of that folder can",
    ),
    "another task": (
        {"setup_config.json": b'{"model_name": "o/n", "task_name": "text-to-image"}'},
        "task_name names the task 'text-to-image', which is not served here",
    ),
    "a model.zip without a model": ({"model.zip": {"a": b""}}, "holds no config.json, so no model"),
    "two models": (
        {"model.zip": None, "a/config.json": b"{}", "b/config.json": b"{}"},
        "holds more than one model: 'a/config.json' and 'b/config.json'",
    ),
    "a config that is no JSON": ({"model.zip": {"config.json": b"{"}}, "cannot be served: "),
    "a config of another kind": (
        {
            "model.zip": {
                "config.json": b'{"model_type": "bert", '
                b'"architectures": ["BertForNextSentencePrediction"]}',
            }
        },
        "describes a BertForNextSentencePrediction, which transformers makes for no task",
    ),
    "no weights": ({"model.zip": {"config.json": b'{"model_type": "bloom"}'}}, "holds no weights"),
    "a shard that is missing": (
        {
            "model.zip": {
                "config.json": b'{"model_type": "bloom"}',
                "model.safetensors.index.json": b'{"weight_map": {"w": "model-2.safetensors"}}',
            }
        },
        "its model is incomplete: model-2.safetensors is named in model.safetensors.index.json",
    ),
    "weights that are none": (
        {"model.zip": {"config.json": b'{"model_type": "bloom"}', "model.safetensors": b"PK"}},
        "model.safetensors is no safetensors file",
    ),
    "a model.zip that is none": ({"model.zip": b"no zip"}, "model.zip"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_archive_ends_in_a_sentence_and_leaves_nothing(
    run: Run, tmp_path: Path, bloom: Path, name: str
) -> None:
    changes, phrase = BROKEN[name]
    content: dict[str, Any] = {
        MANIFEST: manifest(),
        "custom_handler.py": b"",
        "setup_config.json": SEED,
        "model.zip": zip_model(bloom, tmp_path / "whole.zip"),
        **changes,
    }
    if isinstance(content["model.zip"], dict):
        content["model.zip"] = store(tmp_path / "inner.zip", content["model.zip"])
    archive = store(
        tmp_path / "bloom.mar", {key: one for key, one in content.items() if one is not None}
    )
    assert_refused(run, archive, tmp_path / "target", phrase)


def assert_refused(run: Run, archive: Path, folder: Path, phrase: str) -> None:
    """Check that an import fails with one sentence and leaves the target's folder untouched."""
    folder.mkdir()
    code, out, sentence = run(archive, "--into", folder / "imported")

    assert (code, out) == (65, ""), sentence
    assert phrase in sentence
    assert sentence.endswith(".")
    assert len(sentence) <= 400
    assert str(folder) not in sentence
    assert not list(folder.iterdir())


def test_a_model_without_a_tokenizer_is_refused(run: Run, tmp_path: Path, bloom: Path) -> None:
    content = {file.name: file for file in bloom.iterdir() if "tokenizer" not in file.name}
    archive = store(tmp_path / "bloom.mar", {MANIFEST: manifest(), **content})
    assert_refused(
        run, archive, tmp_path / "target", "its model holds no tokenizer that can be used"
    )


@pytest.mark.parametrize("name", hostile.HOSTILE)
def test_a_hostile_archive_ends_in_a_sentence_and_leaves_nothing(
    run: Run, tmp_path: Path, name: str
) -> None:
    make, phrase = hostile.HOSTILE[name]
    (tmp_path / "made").mkdir()
    assert_refused(run, make(tmp_path / "made"), tmp_path / "target", phrase)


def test_a_directory_with_something_in_it_is_left_alone(
    run: Run, tmp_path: Path, bloom: Path
) -> None:
    archive = seed(tmp_path / "packed", bloom)
    into = tmp_path / "imported"
    into.mkdir()
    (into / "precious").touch()
    code, _, sentence = run(archive, "--into", into)

    assert code == 78
    assert sentence == f"{into} is not empty; name a directory that is to be made."
    assert [file.name for file in into.iterdir()] == ["precious"]


def test_a_directory_within_the_archive_is_refused(run: Run, tmp_path: Path, bloom: Path) -> None:
    archive = seed(tmp_path / "packed", bloom, layout="no-archive")
    before = {file.name for file in archive.iterdir()}
    code, _, sentence = run(archive, "--into", archive / "imported")

    assert code == 78
    assert sentence.endswith("lies in what is imported; name a directory outside.")
    assert {file.name for file in archive.iterdir()} == before


def test_a_target_that_is_a_link_to_itself_is_refused(
    run: Run, tmp_path: Path, bloom: Path
) -> None:
    archive = seed(tmp_path / "packed", bloom)
    into = tmp_path / "imported"
    into.symlink_to(into)
    code, _, sentence = run(archive, "--into", into)

    assert code == 78
    assert "cannot be written: " in sentence
    assert not (tmp_path / ".imported.importing").exists()


def test_a_missing_configuration_is_named(run: Run, tmp_path: Path, bloom: Path) -> None:
    archive = seed(tmp_path / "packed", bloom)
    code, _, sentence = run(archive, "--into", tmp_path / "in", "--ts_config", tmp_path / "gone")

    assert (code, sentence) == (
        78,
        f"{tmp_path / 'gone'} cannot be read: No such file or directory.",
    )


def test_a_second_import_at_the_same_time_is_refused(run: Run, tmp_path: Path, bloom: Path) -> None:
    archive = seed(tmp_path / "packed", bloom)
    into = tmp_path / "imported"
    with staged(into, last="config.json") as folder:
        code, _, sentence = run(archive, "--into", into)
        (folder / "config.json").write_text("first")

    assert (code, sentence) == (78, f"Another import is writing {into}; wait for its end.")
    assert (into / "config.json").read_text() == "first"


@pytest.fixture
def large(tmp_path: Path, bloom: Path) -> Path:
    """Return an archive whose copy takes a moment."""
    model = hollow_model(tmp_path / "model", 512 * MIB, bloom / "config.json")
    content = {file.name: file for file in model.iterdir()}
    return store(tmp_path / "bloom.mar", {MANIFEST: manifest(), **content})


def start_import(
    archive: Path, into: Path, *, cold: bool = False
) -> subprocess.Popen[bytes] | forked.Forked:
    """Start an import in its own process; return it when it is writing weights."""
    argv = ["import-torchserve", str(archive), "--into", str(into)]
    process: subprocess.Popen[bytes] | forked.Forked
    if cold:
        process = subprocess.Popen([sys.executable, "-m", "predictor", *argv])
    else:
        process = forked.Forked(argv)
    weights = into.parent / f".{into.name}.importing/content/model.safetensors"
    while process.poll() is None and not weights.exists():
        time.sleep(0.001)
    return process


def test_an_import_that_is_killed_leaves_nothing_that_looks_finished(
    run: Run, tmp_path: Path, large: Path
) -> None:
    into = tmp_path / "target/imported"
    into.parent.mkdir()
    process = start_import(large, into)
    process.kill()

    assert process.wait() == -signal.SIGKILL
    assert not into.exists()
    assert [file.name for file in into.parent.iterdir()] == [".imported.importing"]

    assert run(large, "--into", into)[0] == 0
    assert (into / "model.safetensors").stat().st_size > 512 * MIB
    assert [file.name for file in into.parent.iterdir()] == ["imported"]


@pytest.mark.parametrize(("number", "cold"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_an_import_that_gets_a_signal_leaves_nothing(
    tmp_path: Path, large: Path, number: signal.Signals, cold: bool
) -> None:
    into = tmp_path / "target/imported"
    into.parent.mkdir()
    process = start_import(large, into, cold=cold)
    process.send_signal(number)

    assert process.wait() == 128 + number
    assert not list(into.parent.iterdir())


@pytest.mark.root
def test_a_volume_that_is_too_small_is_reported_with_both_sizes(
    run: Run, tmp_path: Path, large: Path
) -> None:
    with tmpfs(tmp_path / "volume", "16m") as volume:
        code, _, sentence = run(large, "--into", volume / "imported")

        assert code == 78
        assert sentence == f"The model takes 513.01 MiB in {volume}, and 16.00 MiB are free there."
        assert not list(volume.iterdir())


@pytest.mark.root
@pytest.mark.parametrize("size", ["16448k", "256k"])
def test_a_volume_that_fills_up_during_the_copy_is_reported(
    run: Run, tmp_path: Path, bloom: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    """A volume of 64 KiB over 16 MiB fills up within the last chunk of the weights."""
    model = hollow_model(tmp_path / "model", 16 * MIB + 128 * 1024, bloom / "config.json")
    content = {file.name: file for file in model.iterdir()}
    archive = store(tmp_path / "bloom.mar", {MANIFEST: manifest(), **content})
    plenty = shutil.disk_usage(tmp_path)._replace(free=1024 * MIB)
    monkeypatch.setattr("shutil.disk_usage", lambda path: plenty)
    with tmpfs(tmp_path / "volume", size) as volume:
        code, _, sentence = run(archive, "--into", volume / "imported")

        assert (code, sentence) == (
            78,
            f"{volume / 'imported'} cannot be written: No space left on device.",
        )
        assert not list(volume.iterdir())


@pytest.mark.root
def test_a_mount_point_is_filled_from_within(run: Run, tmp_path: Path, bloom: Path) -> None:
    archive = seed(tmp_path / "packed", bloom)
    with tmpfs(tmp_path / "volume") as volume:
        (volume / "lost+found").mkdir()
        code, _, _ = run(archive, "--into", volume)

        assert code == 0
        assert {file.name for file in volume.iterdir()} > {"config.json", "lost+found"}
        assert not (volume / ".importing").exists()
        assert json.loads((volume / "setup_config.json").read_bytes())["model_name"] == "bloom"


@pytest.mark.root
def test_a_read_only_folder_is_reported(run: Run, tmp_path: Path, bloom: Path) -> None:
    archive = seed(tmp_path / "packed", bloom)
    (tmp_path / "closed").mkdir()
    with read_only(tmp_path / "closed"):
        code, _, sentence = run(archive, "--into", tmp_path / "closed/imported")

    assert (code, sentence) == (
        78,
        f"{tmp_path}/closed/imported cannot be written: Read-only file system.",
    )
