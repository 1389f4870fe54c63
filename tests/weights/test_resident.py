"""Weights in main memory are anonymous: a memory limit cannot evict them."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from predictor.weights.progress import Progress
from predictor.weights.resident import FileMappings, make_resident
from tests.conftest import Checkpoints
from tests.serving import bring_up


def file_backed(model: torch.nn.Module) -> set[str]:
    with open("/proc/self/maps") as maps:
        files = FileMappings(maps.read())
    return {name for name, tensor in model.named_parameters() if files.hold(tensor)}


def test_what_from_pretrained_maps_is_copied_and_keeps_its_values(
    checkpoints: Checkpoints,
) -> None:
    folder = checkpoints("llama")
    model = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"})
    assert file_backed(model), "transformers no longer maps checkpoints: this module has no purpose"
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copied, _ = make_resident(model, Progress())
    assert copied == sum(tensor.nbytes for tensor in model.parameters())
    assert not file_backed(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_tied_weights_are_copied_once_and_stay_tied(checkpoints: Checkpoints) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama-tied"), device_map={"": "cpu"})
    copied, _ = make_resident(model, Progress())
    assert copied == sum(tensor.nbytes for tensor in model.parameters())
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_anonymous_weights_are_not_copied_again(checkpoints: Checkpoints) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama"), device_map={"": "cpu"})
    make_resident(model, Progress())
    before = [tensor.data_ptr() for tensor in model.parameters()]
    assert make_resident(model, Progress()) == (0, {})
    assert [tensor.data_ptr() for tensor in model.parameters()] == before


def test_a_served_model_has_no_weight_in_file_pages(checkpoints: Checkpoints) -> None:
    up = bring_up(checkpoints("bloom"), max_memory='{"cpu": "1500KiB"}')
    in_memory = [t for t in up.model.parameters() if t.device.type == "cpu"]
    assert in_memory
    assert not file_backed(up.model)


def test_only_lines_with_an_inode_are_files() -> None:
    maps = (
        "7f0000000000-7f0000001000 r--p 00000000 08:01 42   /models/model.safetensors\n"
        "7f0000001000-7f0000002000 rw-p 00000000 00:00 0 \n"
        "7f0000002000-7f0000003000 rw-p 00000000 00:00 0    [heap]\n"
    )
    files = FileMappings(maps)

    class At:
        def __init__(self, address: int) -> None:
            self.address = address

        def data_ptr(self) -> int:
            return self.address

    held = [files.hold(At(0x7F0000000000 + offset)) for offset in (-1, 0, 0xFFF, 0x1000, 0x2000)]  # type: ignore[arg-type]
    assert held == [False, True, True, False, False]
