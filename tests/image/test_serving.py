"""The image under a pod's limits: little memory, read-only, no capabilities, any user."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.checkpoints import big_checkpoint
from tests.image.containers import PORTS, Container, container, run_of_the_readme
from tests.server.test_clients import over_grpc, over_v1, over_v2

pytestmark = pytest.mark.timeout(1200)  # the first test builds the image

MIB = 1024**2
SMALL_PLAN = ("--max_model_len=256", "--prefill_chunk=64", "--offload_store=always")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with big_checkpoint(tmp_path_factory.mktemp("model"), blocks=20) as folder:  # 980 MiB
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner alone
        yield folder


@pytest.fixture(scope="module")
def offload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an offload volume that group 0 may write, as with `fsGroup: 0`."""
    folder = tmp_path_factory.mktemp("offload")
    folder.chmod(0o770)
    return folder


def words(image: str, model: Path, offload: Path, memory: str, more: str = "") -> list[str]:
    """The README's command with another user id, little memory and this test's places."""
    return run_of_the_readme(
        "/mnt/models",
        {
            **PORTS,
            "--memory 8g": f"--memory {memory} --memory-swap {memory} --user 12345:0 {more}",
            "/srv/model:": f"{model}:",
            "/srv/offload:": f"{offload}:",
            "accelerate-predictor ": f"{image} ",
        },
    ) + list(SMALL_PLAN)


@pytest.fixture(scope="module")
def served(image: str, model: Path, offload: Path) -> Iterator[Container]:
    with container(*words(image, model, offload, "960m"), name="my-model") as pod:
        yield pod.await_ready()


def test_a_model_bigger_than_the_containers_memory_is_served_over_every_protocol(
    served: Container, model: Path, offload: Path
) -> None:
    assert sum(file.stat().st_size for file in model.glob("*.safetensors")) > 960 * MIB
    v1 = over_v1(served, max_new_tokens=4, temperature=0)
    assert over_v2(served, max_new_tokens=4, temperature=0) == v1
    assert over_grpc(served, max_new_tokens=4, temperature="0") == v1
    assert "Placement of LlamaForCausalLM" in served.log
    assert "are streamed from disk" in served.log
    stores = [file for file in offload.rglob("*") if file.stat().st_size > 500 * MIB]
    assert [file.stat().st_uid for file in stores] == [12345]


def running(served: Container) -> bool:
    metrics = httpx.get(f"{served.url}/metrics", timeout=30).text
    return f'predictor_sequences_running{{model_name="{served.name}"}} 1.0' in metrics


def test_sigterm_reaches_the_server_and_the_request_that_runs_gets_its_answer(
    served: Container,
) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answer = pool.submit(served.predict, "a long one", max_new_tokens=20, seed=3, temperature=1)
        while not running(served):
            assert not answer.done()
            time.sleep(0.1)
        served.terminate()
        assert not answer.done()
        assert answer.result().status_code == 200
    assert served.await_end() == 0
    assert "Signal 15: draining, 1 requests are running" in served.log
    assert not served.state["OOMKilled"]
    mount_points = {"C /mnt", "A /mnt/models", "A /mnt/offload"}
    assert served.written() - mount_points == set()


def test_a_model_that_does_not_fit_ends_with_78_and_its_sentence_in_the_termination_log(
    image: str, model: Path, offload: Path, tmp_path: Path
) -> None:
    last_words = tmp_path / "termination-log"
    last_words.touch()
    last_words.chmod(0o666)  # as the kubelet makes it
    mount = f"--volume={last_words}:/dev/termination-log"
    with container(*words(image, model, offload, "632m", mount), name="my-model") as pod:
        assert pod.await_end() == 78
        sentence = last_words.read_text()
        assert sentence.startswith("LlamaForCausalLM in float32 does not fit: main memory lacks")
        assert pod.log.splitlines()[-1] == f"predictor: {sentence}"
        assert not pod.state["OOMKilled"]


def test_a_limit_below_the_process_itself_is_reported_before_it_is_killed(
    image: str, model: Path, offload: Path
) -> None:
    with container(*words(image, model, offload, "300m"), name="my-model") as pod:
        assert pod.await_end() == 78
        assert "own processes take 608.00 MiB of main memory" in pod.log.splitlines()[-1]
        assert not pod.state["OOMKilled"]
