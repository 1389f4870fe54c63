"""The benchmarks run, write their results as JSON, and fail if they measured something else.

Sizes are tiny, so the numbers mean nothing here. These tests exercise the benchmarks' own checks.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.cgroups import memory_cgroup

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
COSTS = {"seconds", "cpu_seconds", "peak"}

_HANG = 420
"""Seconds after which a benchmark counts as hung; some start several servers."""

pytestmark = pytest.mark.timeout(_HANG + 60)


@pytest.fixture(scope="module")
def tiny_plan(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess, Any]:
    return run("plan.py", tmp_path_factory, "--rounds=1", "--models", "BLOOM-176B")


@pytest.fixture(scope="module")
def plan_module() -> Any:
    return load("plan")


@pytest.fixture(scope="module")
def contrast_module() -> Any:
    return load("contrast")


def load(name: str) -> Any:
    """Import a script with its neighbours on the path, as when it is run."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def run(
    script: str, folders: pytest.TempPathFactory, *flags: str
) -> tuple[subprocess.CompletedProcess, Any]:
    path = folders.mktemp("benchmark") / "numbers.json"
    argv = [sys.executable, str(BENCHMARKS / script), "--json", str(path), *flags]
    return run_to_the_end(argv, _HANG), json.loads(path.read_text())


def run_to_the_end(argv: list[str], seconds: float) -> subprocess.CompletedProcess:
    """Run a benchmark, and end the servers that it started with it if it hangs."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        out, err = process.communicate(timeout=seconds)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def test_a_benchmark_that_hangs_ends_with_its_servers():
    server = "import time; print('serves', flush=True); time.sleep(60)"
    benchmark = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {server!r}])"
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        run_to_the_end([sys.executable, "-c", benchmark], seconds=5)
    assert b"serves" in caught.value.output
    assert time.monotonic() - began < 50  # the server held its standard output until it ended


def test_planning_is_timed_apart_from_the_imports(tiny_plan):
    done, numbers = tiny_plan
    assert done.returncode == 0, done.stderr
    result = numbers["models"]["BLOOM-176B"]
    for part in ("whole", "libraries", "predictor", "planning", "start_and_end"):
        assert set(result[part]) == COSTS
        assert all(result[part].values())
    assert len(result["other_resources"]) == 3
    assert 0 < result["planning_over_whole"] < 1
    assert result["planning"]["seconds"] < result["whole"]["seconds"]


def test_the_table_shows_the_target_and_whether_it_was_reached(tiny_plan):
    done, numbers = tiny_plan
    assert numbers["target"] == {"seconds": 5.0, "bytes": 2**30}
    assert "BLOOM-176B: target under 5 s and 1024 MiB: whole command time " in done.stdout


def test_the_peak_of_a_plan_is_that_of_torch_and_little_more(tiny_plan):
    _, numbers = tiny_plan
    result = numbers["models"]["BLOOM-176B"]
    assert 2**27 < result["libraries"]["peak"] <= result["planning"]["peak"] < 2**30


def test_a_command_that_cannot_plan_fails_the_benchmark(tmp_path_factory):
    done, numbers = run("plan.py", tmp_path_factory, "--rounds=1", "--python=/bin/false")
    assert done.returncode == 1
    assert "failed: it said nothing" in done.stderr
    assert numbers["failure"] in done.stderr


@pytest.mark.parametrize(
    ("name", "parameters", "kv_per_token"),
    [
        ("BLOOM-176B", 176_247_271_424, 4_014_080),
        ("Llama-3-70B", 70_553_706_496, 327_680),
        ("Mixtral-8x22B", 140_630_071_296, 229_376),
        ("Qwen3-235B-A22B", 235_093_634_560, 192_512),
        ("DeepSeek-V3", 671_026_404_352, 70_272),
        ("gpt-oss-120b", 116_829_156_672, 73_728),
        ("GLM-4.5", 352_797_814_784, 376_832),  # without the layer that predicts a second token
        ("Llama-4-Maverick", 400_711_848_960, 196_590),
    ],
)
def test_the_expected_sizes_are_the_published_ones(plan_module, name, parameters, kv_per_token):
    shape = plan_module.SHAPES[name]
    assert shape.weights == 2 * parameters
    assert shape.kv // (2048 if name == "BLOOM-176B" else 8192) == kv_per_token


def sound(plan: Any) -> dict[str, Any]:
    shape = plan.SHAPES["BLOOM-176B"]
    tier = {"name": "0", "weights": shape.weights, "kv": shape.kv, "planned": 7, "budget": 7}
    return {"tiers": [tier], "device_map": {f"h.{index}": "disk" for index in range(shape.blocks)}}


def test_a_sound_plan_passes(plan_module):
    plan_module.check("BLOOM-176B", plan_module.RESOURCES[0], sound(plan_module))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("weights", 352_494_542_847, "places 352494542847 bytes of weights"),
        ("kv", 1, "has 1 bytes of KV cache"),
        ("planned", 8, "over the budget of tier 0"),
    ],
)
def test_a_plan_with_wrong_bytes_is_nonsense(plan_module, key, value, reason):
    plan = sound(plan_module)
    plan["tiers"][0][key] = value
    with pytest.raises(plan_module.CannotMeasure, match=reason):
        plan_module.check("BLOOM-176B", plan_module.RESOURCES[0], plan)


def test_a_plan_that_leaves_a_block_out_is_nonsense(plan_module):
    plan = sound(plan_module)
    del plan["device_map"]["h.69"]
    with pytest.raises(plan_module.CannotMeasure, match="leaves out block 69"):
        plan_module.check("BLOOM-176B", plan_module.RESOURCES[0], plan)


def test_a_plan_without_room_is_nonsense_and_so_is_a_refusal_with_room(plan_module):
    first, *_, last = plan_module.RESOURCES
    with pytest.raises(plan_module.CannotMeasure, match="was made"):
        plan_module.check("BLOOM-176B", last, sound(plan_module))
    with pytest.raises(plan_module.CannotMeasure, match="was refused"):
        plan_module.check("BLOOM-176B", first, None)
    plan_module.check("BLOOM-176B", last, None)


@pytest.mark.root
def test_contestants_of_a_small_pod_give_the_same_reply(tmp_path_factory):
    with memory_cgroup(2**26):
        pass  # skips or fails if there are no cgroups
    size = ("--hidden=512", "--blocks=24", "--vocabulary=512", "--limit=0.8")
    who = ("--rounds=1", "--tokens=3", "--contestants", "predictor", "plain")
    done, numbers = run("contrast.py", tmp_path_factory, *size, *who)
    assert done.returncode == 0, done.stderr
    assert numbers["failure"] is None
    result = numbers["contestants"]
    assert set(result) == {"predictor", "plain"}
    assert result["predictor"]["survived"] == 1
    assert result["predictor"]["on_disk"] > 0
    assert result["predictor"]["anonymous"] <= result["predictor"]["peak"] <= numbers["limit"]
    assert numbers["ratios"]["plain"]["seconds_per_token"] == 1
    assert len(numbers["rounds"][0]["predictor"]["per_token"]) == 3


def test_contrast_fails_without_cgroups(tmp_path_factory):
    done, numbers = run("contrast.py", tmp_path_factory, "--mounts=/dev/null")
    assert done.returncode == 1
    assert "No memory controller is mounted here" in done.stderr
    assert numbers["failure"] in done.stderr


def alive(*tokens: int, on_disk: int = 1) -> dict[str, Any]:
    return {"survived": True, "tokens": list(tokens), "on_disk": on_disk}


DEAD: dict[str, Any] = {"survived": False}


@pytest.mark.parametrize(
    ("predictor", "plain", "reason"),
    [
        (alive(1, 2), DEAD, "Only 1 of the contestants survived"),
        (DEAD, DEAD, "Only 0 of the contestants survived"),
        (alive(1, 2), alive(1, 3), "gave 2 different replies"),
        (alive(1, 1), alive(1, 1), "equal replies prove nothing"),
        (alive(1, 2, on_disk=0), alive(1, 2), "offloaded nothing"),
    ],
)
def test_runs_that_compare_nothing_fail_the_benchmark(contrast_module, predictor, plain, reason):
    assert reason in contrast_module.failure_of([{"predictor": predictor, "plain": plain}])


def test_runs_with_one_reply_from_two_survivors_are_a_comparison(contrast_module):
    runs = {"predictor": alive(1, 2), "plain": alive(1, 2, on_disk=0), "by-hand": DEAD}
    assert contrast_module.failure_of([runs]) is None


def test_serving_compares_a_server_with_raw_generate(tmp_path_factory):
    done, numbers = run("serving.py", tmp_path_factory, "--quick", "--parts=resident", "--wait=0")
    assert done.returncode == 0, done.stderr
    result = numbers["parts"]["resident"]
    assert result["raw"]["tokens"] == 3 * 4
    assert [(level["users"], level["tokens"]) for level in result["levels"]] == [(1, 12), (2, 24)]
    assert all(level["x_raw"] > 0 for level in result["levels"])
    assert all(level["inter_token_seconds"]["p99"] > 0 for level in result["levels"])
    assert result["short_beside_long"]["chunks"] > 0
    assert {target["target"] for target in numbers["targets"]} == {">= 0.95", "< 2"}


def test_serving_compares_a_server_with_itself_in_further_parts(tmp_path_factory):
    parts = "--parts=prefix,adapters,contexts"
    done, numbers = run("serving.py", tmp_path_factory, "--quick", parts)
    assert done.returncode == 0, done.stderr
    assert numbers["parts"] == {}
    for cache in ("with", "without"):
        levels = numbers["more"]["prefix"]["measured"][cache]["levels"]
        assert [level["users"] for level in levels] == [1, 2]
        assert all(level["passes"] > 0 for level in levels)
    (level,) = numbers["more"]["adapters"]["levels"]
    assert level["users"] == 4
    assert level["ratio"] > 0
    levels = numbers["more"]["contexts"]["levels"]
    assert [level["context"] for level in levels] == [32, 64]
    assert all(level["gap"] > 0 for level in levels)
    named = {target["what"].partition(",")[0] for target in numbers["targets"]}
    assert named == {"prefix", "adapters"}


def test_drafts_compares_a_server_with_and_without_drafts(tmp_path_factory):
    done, numbers = run("drafts.py", tmp_path_factory, "--quick")
    assert done.returncode == 0, done.stderr
    for kind in ("edited", "quoted", "new", "misleading"):
        assert list(numbers["ratios"]["with"][kind]) == ["1", "2"]
    accepted = {kind: counts["1"] for kind, counts in numbers["accepted"].items()}
    assert accepted["edited"] > accepted["quoted"] > 0
    assert accepted["new"] == 0


def test_prefill_compares_chunks_that_pay_with_fixed_ones(tmp_path_factory):
    done, numbers = run("prefill.py", tmp_path_factory, "--quick")
    assert done.returncode == 0, done.stderr
    assert set(numbers["ratios"]) == {"48", "96"}
    passes = [numbers["measured"][way]["96"]["passes"] for way in ("fixed", "as pays")]
    assert passes[0] >= passes[1] >= 1


def test_threads_compares_a_disturbed_start_with_an_undisturbed_one(tmp_path_factory):
    done, numbers = run("threads.py", tmp_path_factory, "--quick")
    assert done.returncode == 0, done.stderr
    result = numbers["parts"]["demo"]
    assert result["ratio"] > 0
    assert result["disturbed_threads"][0] >= 1
    assert result["quiet_threads"][0] >= 1


def test_threads_fails_if_a_disturbed_start_stays_slow():
    failure_of = load("threads").failure_of
    assert failure_of({"demo": {"ratio": 0.9}}) is None
    assert failure_of({"demo": {"ratio": 0.89}, "llama": {"ratio": 1.0}}) == "Under 0.9: demo."


def test_offload_compares_streaming_with_accelerates_maps(tmp_path_factory):
    with memory_cgroup(2**30):
        pass  # or skip
    flags = ("--quick", "--rounds=1", "--tokens=4", "--limit=1.0", "--budget=0.07")
    done, numbers = run("offload.py", tmp_path_factory, *flags)
    assert done.returncode == 0, done.stderr
    (result,) = numbers["rounds"]
    assert set(result) == {"auto", "max_memory", "all disk", "predictor", "store", "again"}
    for name in ("predictor", "store", "again"):
        assert result[name]["probe"]["streamed_bytes"] > 50 * 2**20
    assert len(numbers["targets"]) == 5


def test_encoders_compares_servers_that_answer_alike(tmp_path_factory):
    flags = ("--users=1,2", "--kinds=queries", "--requests=8", "--rounds=1", "--wait=0")
    done, numbers = run("encoders.py", tmp_path_factory, *flags)
    assert done.returncode == 0, done.stderr
    assert [level["users"] for level in numbers["levels"]] == [1, 2]
    assert all(level["x"] > 0 for level in numbers["levels"])
    assert 0 < numbers["largest_difference"] < 1e-4
    assert "queries, 1 users: p99" in done.stdout


def test_queues_compares_what_is_decided_between_passes_with_its_targets(tmp_path_factory):
    flags = ("--waiting=500", "--hang-ups=100", "--texts=100", "--rounds=1")
    sizes = ("--rows", "1", "3", "--vocabulary", "1000")
    done, numbers = run("queues.py", tmp_path_factory, *flags, *sizes)
    assert numbers["lone_text_passes"] <= 2
    assert numbers["lone_sequence_turns"] <= 2
    assert {one["rows"] for one in numbers["sampling"]} == {1, 3}
    assert all(one["ms"] > 0 for one in numbers["sampling"])
    missed = [name for name, most in numbers["targets"].items() if numbers[name] > most]
    assert done.returncode == (1 if missed else 0), done.stderr  # times depend on the machine
    assert all(name in done.stderr for name in missed)


@pytest.fixture(scope="module")
def short_abuse(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The short form, in a memory cgroup where one can be made."""
    return run("abuse.py", tmp_path_factory, "--quick", "--seconds=1")


def test_abuse_sends_each_load_beside_a_probe_and_a_neighbour(short_abuse):
    done, numbers = short_abuse
    assert done.returncode == 0, done.stderr
    for case in numbers["cases"]:
        assert case["live"]["count"] > 0
        assert case["left"] == {"requests": 0, "files": 0}
        assert case.get("kills", 0) == 0
    assert {target["what"] for target in numbers["targets"]} > {"live p99", "lone text's passes"}


def test_abuse_counts_the_statuses_that_its_clients_see(short_abuse):
    _, numbers = short_abuse
    seen = {case["name"].partition(" ")[0]: set(case["counts"]) for case in numbers["cases"]}
    assert seen["C3"] <= {"431", "none"}
    assert seen["C14"] == {"404"}
    assert seen["C15"] == {"INVALID_ARGUMENT"}
    assert "429" in seen["C5"]


def test_a_call_of_the_abusers_is_a_message_of_the_protocol(load_abusers):
    messages = importlib.import_module("kserve.protocol.grpc.grpc_predict_v2_pb2")
    call = messages.ModelInferRequest.FromString(load_abusers.infer_request(b"word " * 1000))
    (tensor,) = call.inputs
    assert (call.model_name, tensor.name, tensor.datatype) == ("m", "text", "BYTES")
    assert list(tensor.shape) == [1]
    assert list(tensor.contents.bytes_contents) == [b"word " * 1000]


@pytest.fixture(scope="module")
def load_abusers() -> Any:
    return load("abusers")


def result_of_abuse(**changed: Any) -> dict[str, Any]:
    probe = {"p50": 0.001, "p99": 0.002, "failed": 0}
    sound = {
        "name": "C14 early refusals",
        "counts": {"404": 3},
        "left": {"requests": 0, "files": 0},
        "live": probe,
        "ready": probe,
        "seconds": {},
        "first_event": None,
    }
    return sound | changed


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"counts": {"404": 3, "ConnectionResetError": 1}}, "statuses .'ConnectionResetError'"),
        ({"kills": 1}, "killed for memory"),
        ({"left": {"requests": 2, "files": 0}}, "2 requests stay open"),
        ({"ready": {"failed": 1}}, "1 probes of ready failed"),
    ],
)
def test_abuse_fails_for_what_no_busy_machine_explains(changed, reason):
    verdicts = load("verdicts")
    assert verdicts.wrong(result_of_abuse()) == []
    (sentence,) = verdicts.wrong(result_of_abuse(**changed))
    assert re.search(reason, sentence)


def test_abuse_compares_a_probe_and_a_neighbour_with_their_bounds():
    verdicts = load("verdicts")
    slow = {"p50": 0.01, "p99": 0.051}
    result = result_of_abuse(ready=slow, neighbour=0.89)
    reached = {one["what"]: one["reached"] for one in verdicts.targets(result)}
    assert reached == {"live p99": True, "ready p99": False, "neighbour": False}


def test_encoders_fails_if_the_model_is_not_installed(tmp_path_factory, monkeypatch):
    module = load("encoders")
    monkeypatch.setattr(module, "PACKAGE", "no_such_package")
    path = tmp_path_factory.mktemp("encoders") / "numbers.json"
    assert module.main(["--json", str(path)]) == 1
    assert "no_such_package" in json.loads(path.read_text())["failure"]


def test_the_gpu_benchmark_fails_without_a_gpu(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done, numbers = run("gpu.py", tmp_path_factory, "--quick")
    assert done.returncode == 1
    assert numbers["failure"].endswith("torch sees no CUDA device")


@pytest.mark.parametrize(
    ("layers", "buffers", "times", "seconds"),
    [
        # Copies of 2 follow each other: 4 of them are a pass.
        ([0, 0, 0, 0], 2, {}, 8),
        # With one buffer, each copy waits for the computation of the block before: 4 x (2 + 1).
        ([0, 0, 0, 0], 1, {}, 12),
        # A pass ends 1 after its last copy. The next two copies go on meanwhile, 3 beyond that end,
        # and the next one waits until the first block has computed, at 10 + 1.
        ([0, 0, 0, 0], 2, {"between": 10}, 8 + 8),
        # A third buffer has one copy more meanwhile.
        ([0, 0, 0, 0], 3, {"between": 10}, 8 + 6),
        # The kernels take longer to start than to run, and all copies are hidden.
        ([0, 0, 0, 0], 2, {"start": 5}, 20),
        # While a layer that stays computes, the next block is copied.
        ([0, None, 0, None], 2, {}, 4),
        # A block is staged while the one before is copied, unless that takes longer.
        ([0, 0, 0, 0], 2, {"staging": 1.5}, 8),
        ([0, 0, 0, 0], 2, {"staging": 3}, 12),
        # In turns, two GPUs copy at the same time.
        ([0, 1] * 4, 2, {}, 8),
    ],
)
def test_a_pass_over_streamed_blocks_takes_as_long_as_by_hand(layers, buffers, times, seconds):
    module = load("link")
    own = module.Times(**{"copy": 2, "compute": 1, "start": 0} | times)
    assert module.pass_seconds(own, layers, buffers=buffers) == pytest.approx(seconds)
    gpus = len({gpu for gpu in layers if gpu is not None})
    copied = 2 * sum(gpu is not None for gpu in layers) / gpus
    share = module.link_share(own, layers, buffers=buffers)
    assert share == pytest.approx(copied / seconds)


def test_two_gpus_that_take_turns_copy_more_than_with_half_of_the_layers_each(capsys, tmp_path):
    module = load("link")
    path = tmp_path / "numbers.json"
    assert module.main(["--json", str(path), "--start", "0.2", "20"]) == 0
    assert capsys.readouterr().out.startswith("Simulated, not run.")
    shares = json.loads(path.read_text())["shares"]
    fast = {name: row["0.2"] for name, row in shares.items()}
    assert fast["2 buffers"] > 0.9
    assert fast["two GPUs in turns"] > fast["two GPUs, the first half and the second"]
    assert all(row["20"] < row["0.2"] for row in shares.values())


def test_limits_checks_each_server_against_its_plan(tmp_path_factory):
    with memory_cgroup(2**30):
        pass  # or skip
    shapes = ("16 blocks of 21 MB", "8 blocks of 128 experts of 0.4 MB")
    flags = ("--shapes", *shapes, "--limits", "1.0", "--users", "2")
    done, numbers = run("limits.py", tmp_path_factory, *flags)
    assert done.returncode == 0, done.stderr
    assert len(numbers["cases"]) == len(shapes)
    for case in numbers["cases"]:
        assert case["outcome"] == "served"
        assert case["on_disk"] > 0
        assert 0 < case["planned"] < case["limit"]


def test_serving_leaves_the_offloaded_part_out_without_cgroups(tmp_path_factory):
    flags = ("--quick", "--parts=offloaded", "--mounts=/dev/null")
    done, numbers = run("serving.py", tmp_path_factory, *flags)
    assert done.returncode == 1
    assert numbers["failure"] in done.stderr
    assert numbers["failure"].startswith("offloaded: No memory controller is mounted here")


def test_experts_compares_experts_with_whole_blocks_and_a_peer_over_a_made_routing(
    tmp_path_factory,
):
    who = ("--contestants", "experts", "whole", "accelerate", "--uniform_users")
    done, numbers = run("experts.py", tmp_path_factory, "--quick", *who)
    assert done.returncode == 0, done.stderr
    for name in ("experts", "whole", "accelerate"):
        result = numbers["runs"]["skewed"][name]
        assert set(result["levels"]) == {"1", "2"}
        assert all(level["tokens_per_second"] > 0 for level in result["levels"].values())
        assert result["prefill"]["tokens"] == 64
    whole = numbers["runs"]["skewed"]["whole"]["levels"]["1"]
    assert whole["read_bytes"] > whole["tokens"] * numbers["weights"] / 4
    experts = numbers["runs"]["skewed"]["experts"]["levels"]["1"]
    assert experts["hits"] > 0 < experts["misses"]
    assert 0 < experts["read_bytes"] < whole["read_bytes"]
    assert numbers["bytes_per_second"] > 0
    skewed, uniform = (numbers["routings"][name] for name in ("skewed", "uniform"))
    assert skewed["overlap"] > 0.4 > 0.2 > uniform["overlap"]
    assert skewed["skew"] > 0.4 > uniform["skew"]
    assert skewed["caches"][1]["policy"]["1"] > 0.6


def test_experts_asks_for_what_a_peer_needs(tmp_path_factory):
    flags = ("--quick", "--contestants", "llama.cpp")
    done, numbers = run("experts.py", tmp_path_factory, *flags)
    assert done.returncode == 1
    assert "needs --peer_python" in numbers["failure"]


def level_of_experts(**changed: Any) -> dict[str, Any]:
    sound = {
        "seconds": 2.0,
        "tokens": 16,
        "tokens_per_second": 8.0,
        "read_bytes": 900,
        "compute_seconds": 0.5,
        "hits": 5,
        "misses": 9,
    }
    return sound | changed


def result_of_experts(**changed: Any) -> dict[str, Any]:
    """Return a result with experts of 100 bytes on a device of 500 bytes a second."""
    level = level_of_experts(**changed)
    mine = {"survived": True, "levels": {1: level}, "prefill": level}
    slow = level_of_experts(tokens_per_second=1.0)
    whole = {"survived": True, "levels": {1: slow}, "prefill": slow}
    runs = {"skewed": {"experts": mine, "whole": whole}, "uniform": {}}
    return {"limit": 1, "expert": 100, "bytes_per_second": 500, "runs": runs}


def test_experts_compares_speeds_bytes_and_the_limit_with_targets():
    report = load("expert_report")
    measured = {one["what"]: one["measured"] for one in report.targets(result_of_experts())}
    assert measured == {
        "x whole blocks, 1 user(s)": 8.0,
        "x whole blocks, prefill": 8.0,
        "of the limit, 1 user(s)": 0.9,
        "x missing experts' bytes, 1 user(s)": 1.0,
    }
    assert all(one["reached"] for one in report.targets(result_of_experts()))
    too_much = report.targets(result_of_experts(read_bytes=1000))
    assert [one["what"] for one in too_much if not one["reached"]] == [
        "x missing experts' bytes, 1 user(s)"
    ]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"hits": 0, "misses": 0}, "No expert was counted with 1 user"),
        ({"misses": 0}, "Every expert stayed in memory"),
        ({"seconds": 1.0}, "took 1.80 of the limit"),
    ],
)
def test_experts_fails_if_its_numbers_prove_nothing(changed, reason):
    failure_of = load("expert_report").failure_of
    assert failure_of(result_of_experts()) is None
    assert reason in failure_of(result_of_experts(**changed))


def test_experts_fails_without_a_survivor_to_compare_with():
    result = result_of_experts()
    del result["runs"]["skewed"]["whole"]
    assert load("expert_report").failure_of(result) == "There is nothing to compare with."


def test_a_routing_is_measured_by_overlap_skew_and_simulated_caches():
    # One layer, two users, eight experts: one user alternates, the other stays.
    layer = [[[0, 1], [1, 2]] * 8, [[6, 7]] * 16]
    measured = load("routing").measure([layer], experts=8, users=(1, 2), shares=(0.25,))
    assert measured["overlap"] == 0.5
    assert measured["skew"] == 32 / 64  # of the two most used experts, 6 and 7 or 1
    assert measured["union"] == {1: 2.0, 2: 4.0}
    (cache,) = measured["caches"]
    assert (cache["slots"], cache["lru"][1]) == (2, 15 / 32)


def test_quantised_compares_a_model_in_bfloat16_with_packed_ones(tmp_path_factory):
    who = ("--contestants", "bf16", "fp8", "int4", "--users", "1", "--tokens", "4")
    done, numbers = run("quantised.py", tmp_path_factory, "--quick", *who)
    assert done.returncode == 0, done.stderr
    (runs,) = numbers["limits"].values()
    assert runs["int4"]["packed"] < runs["fp8"]["packed"] < runs["bf16"]["packed"]
    for contestant in runs.values():
        assert contestant["levels"]["1"]["tokens_per_second"] > 0
        assert contestant["prefill"]["tokens"] == 64
    assert numbers["bandwidth"] > 0
    assert numbers["processor"] in done.stdout
    assert {one["what"] for one in numbers["targets"]} == {
        "no cgroup: int4 of memory bandwidth, 1 user"
    }


@pytest.mark.parametrize(
    ("contestant", "needed"), [("llama q4_0", "--llama_server"), ("before", "--before")]
)
def test_quantised_asks_for_what_a_contestant_needs(tmp_path_factory, contestant, needed):
    flags = ("--quick", "--contestants", contestant)
    done, numbers = run("quantised.py", tmp_path_factory, *flags)
    assert done.returncode == 1
    assert f"{contestant} needs {needed}" in numbers["failure"]


def run_of_quantised(speed: float, **changed: Any) -> dict[str, Any]:
    level = {"tokens": 10, "seconds": 10 / speed, "tokens_per_second": speed, "read_bytes": 0}
    sound = {
        "packed": 600,
        "on_disk": 0,
        "first_tokens": [1, 2, 3, 4],
        "levels": {1: level, 16: level},
        "prefill": level,
        "peak": 700,
        "charged": 800,
        "ready_seconds": 2.0,
    }
    return sound | changed


def streamed_run(speed: float) -> dict[str, Any]:
    """Return a run that reads 100 bytes for each of its 10 tokens."""
    run = run_of_quantised(speed, on_disk=100)
    level = run["levels"][1] | {"read_bytes": 1000}
    return run | {"levels": {1: level}}


def result_of_quantised(**runs: dict[str, Any]) -> dict[str, Any]:
    """Return a result on a disk of 100 bytes a second, with memory of 6,000 bytes a second."""
    named = {who.replace("_", " ", 1): run for who, run in runs.items()}
    facts = {"weights": 1000, "embeddings": 100, "disk": 100, "bandwidth": 6000}
    return facts | {"limits": {"1 GiB": named}, "processor": "a processor", "machine": ["", ""]}


def test_quantised_models_are_held_against_bf16_that_waits_for_the_disk():
    report = load("quantised_report")
    result = result_of_quantised(bf16=streamed_run(1.0), int8=streamed_run(2.0))
    (one,) = report.targets(result)
    assert one["what"] == "1 GiB: int8 / bf16, 1 user(s)"
    assert (one["measured"], one["target"], one["reached"]) == (2.0, 1.8, True)
    assert report.targets(result | {"disk": 1000}) == []  # the disk takes a tenth of the time
    assert "int8 / bf16, 1 user(s): 2.00, target 1.8: reached" in report.report(
        result | {"targets": [one]}
    )


def test_resident_models_are_held_against_memory_and_llama_cpp():
    report = load("quantised_report")
    result = result_of_quantised(
        int4=run_of_quantised(9.0), llama_q4_0=run_of_quantised(10.0), bf16=run_of_quantised(4.0)
    )
    measured = {one["what"]: (one["measured"], one["reached"]) for one in report.targets(result)}
    assert measured == {
        "1 GiB: int4 of memory bandwidth, 1 user": (0.75, True),
        "1 GiB: int4 / llama q4_0, 1 user(s)": (0.9, False),
        "1 GiB: int4 / llama q4_0, 16 user(s)": (0.9, True),
    }


def test_an_older_predictor_is_compared_in_company_and_in_prompts():
    report = load("quantised_report")
    result = result_of_quantised(bf16=run_of_quantised(6.0), before=run_of_quantised(3.0))
    measured = {one["what"]: (one["measured"], one["reached"]) for one in report.targets(result)}
    assert measured == {
        "1 GiB: bf16 / before, 16 user(s)": (2.0, True),
        "1 GiB: bf16 / before, prefill": (2.0, False),
    }


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ({"bf16": {"refused": True, "why": "it does not fit"}}, "nothing was served"),
        ({"int8": {"refused": False, "why": "It died."}, "bf16": run_of_quantised(1)}, "It died"),
        ({"int8": run_of_quantised(1.0, on_disk=1)}, "has weights on disk and read none"),
        ({"int8": run_of_quantised(20.0)}, "took 1.67 of a bandwidth"),
        (
            {"bf16": run_of_quantised(1), "llama_bf16": run_of_quantised(1, first_tokens=[1] * 4)},
            "not the same model",
        ),
    ],
)
def test_quantised_fails_if_its_numbers_prove_nothing(runs, reason):
    failure_of = load("quantised_report").failure_of
    assert failure_of(result_of_quantised(bf16=run_of_quantised(1.0))) is None
    assert reason in failure_of(result_of_quantised(**runs))


def test_a_refused_contestant_and_a_failed_peer_leave_the_others_comparable():
    report = load("quantised_report")
    refused, failed = {"refused": True, "why": "no"}, {"refused": False, "why": "killed"}
    result = result_of_quantised(bf16=refused, llama_bf16=failed, int8=run_of_quantised(1.0))
    assert report.failure_of(result) is None
    table = report.report(result | {"targets": []})
    assert "refused" in table
    assert "failed" in table


def test_quality_measures_the_perplexity_of_quantised_weights(tmp_path_factory):
    flags = ("--tokens", "1024", "--variants", "int8", "int4")
    done, numbers = run("quality.py", tmp_path_factory, *flags)
    assert done.returncode == 0, done.stderr
    demo = numbers["models"]["demo"]
    assert set(demo) == {"bf16", "int8", "int4"}
    assert demo["bf16"]["bytes"] > demo["int8"]["bytes"] > demo["int4"]["bytes"]
    assert 0 < abs(demo["int8"]["percent"]) < 1
    assert "smollm2 is left out: see --peer_python" in done.stderr


def test_perplexities_are_compared_window_by_window():
    measured = load("quality").compared([1.0, 2.1], [0.9, 2.0])
    assert measured["perplexity"] == pytest.approx(math.exp(1.55))
    assert measured["percent"] == pytest.approx(100 * (math.exp(0.1) - 1))
    assert measured["error"] == pytest.approx(0, abs=1e-6)  # both windows cost the same


def quality_of(**changed: Any) -> dict[str, Any]:
    exact = {"perplexity": 1.5, "percent": 0.0, "error": 0.0, "bytes": 10}
    return {"demo": {"bf16": exact, "int8": exact | {"percent": 0.1, "bytes": 6} | changed}}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"percent": 0}, "nothing has changed"), ({"bytes": 10}, "no layer became smaller")],
)
def test_quality_fails_if_nothing_was_quantised(changed, reason):
    failure_of = load("quality").failure_of
    assert failure_of(quality_of()) is None
    assert reason in failure_of(quality_of(**changed))


def test_quality_fails_on_a_model_without_its_trained_weights():
    models = quality_of()
    models["demo"]["bf16"] |= {"perplexity": 2000.0}
    assert "it is not the trained model" in load("quality").failure_of(models)


def test_features_in_another_order_compute_the_same():
    config = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 50,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.inference_mode():
        before = model(tokens).logits
        weights = {name: tensor.numpy().copy() for name, tensor in model.named_parameters()}
        originals = {name: tensor.copy() for name, tensor in weights.items()}
        load("quality_models").shuffle(weights, config, np.random.default_rng(0))
        model.load_state_dict({name: torch.tensor(w) for name, w in weights.items()}, strict=False)
        after = model(tokens).logits
    assert all(not np.array_equal(weights[n], originals[n]) for n in weights if "proj" in n)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def load_module() -> Any:
    return load("load")


def received(
    *pieces: bytes, status: bytes = b"HTTP/1.1 200 OK\r\n\r\n"
) -> list[tuple[float, bytes]]:
    return [(float(when), piece) for when, piece in enumerate((status, *pieces), start=1)]


def event(text: str, **more: Any) -> bytes:
    data = {"index": 0, "text": text, "finish_reason": None, **more}
    return b"5f\r\ndata: " + json.dumps(data).encode() + b"\n\n\r\n"


LAST = event("", finish_reason="length", prompt_tokens=2, completion_tokens=2)


def reply(module: Any, pieces: list[tuple[float, bytes]]) -> Any:
    connection = module.Connection(b"", None, sent=0.5, received=pieces)
    return module.parse_reply(connection, module.Prompt("a b", 2))


def test_the_client_times_each_text_by_the_bytes_that_end_it(load_module):
    whole = event(" c")
    result = reply(load_module, received(event("b"), whole[:20], whole[20:] + LAST))
    assert (result.first, result.gaps, result.tokens) == (1.5, (2.0,), 2)


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([], "no answer"),
        (received(b"busy", status=b"HTTP/1.1 429 Too Many Requests\r\n\r\n"), "429"),
        (received(event("b")), "A request failed"),
        (received(event("b"), b'data: {"error": "broken"}\n\n'), "broken"),
        (received(LAST), "no text"),
        (received(event("b"), LAST.replace(b'"prompt_tokens": 2', b'"prompt_tokens": 3')), "not 2"),
    ],
)
def test_a_request_that_was_not_answered_fails_the_benchmark(load_module, pieces, reason):
    with pytest.raises(load_module.CannotMeasure, match=reason):
        reply(load_module, pieces)


def test_the_time_to_plan_a_shape_has_a_bound(tmp_path_factory: pytest.TempPathFactory) -> None:
    done, numbers = run("plan_time.py", tmp_path_factory, "--models", "gpt2-xl", "--target=0")
    assert done.returncode == 1
    assert "for gpt2-xl" in numbers["failure"]
    assert numbers["seconds"]["gpt2-xl"] > 0
    assert "gpt2-xl" in done.stdout


@pytest.mark.parametrize("flags", [("--shared=32",), ("--new=3",), ("--dtype=bfloat16",)])
def test_attention_in_place_is_compared_with_copies_and_with_generate(
    tmp_path_factory: pytest.TempPathFactory, flags: tuple[str, ...]
) -> None:
    size = ("--hidden=256", "--heads=4", "--kv-heads=2", "--layers=2", "--rounds=1")
    done, numbers = run("attention.py", tmp_path_factory, *size, *flags, "--shapes", "3x64", "1x96")
    assert done.returncode == 0, done.stderr
    together, alone = numbers["shapes"]
    assert set(together["seconds"]) == {"views", "gathered"}
    assert set(alone["ratios"]) == {"views", "gathered", "generate"}


def test_batch_compares_bulk_work_with_the_engine_alone(tmp_path_factory):
    done, numbers = run("batch.py", tmp_path_factory, "--quick")
    assert done.returncode == 0, done.stderr
    assert set(numbers["rates"]) == {"engine, batches of 4", "engine, batches of 8", "batch"}
    assert numbers["ratio"] > 0
    assert numbers["tokens"] > 0
