import pytest
import torch

from predictor.errors import ConfigurationError
from predictor.pod.accelerators import read_accelerators, read_backend
from predictor.pod.resources import Accelerator


class TwoCards:
    """Stands in for ``torch.cuda`` on a machine with two devices, the second of them broken."""

    def __init__(self, *, broken: bool) -> None:
        self.broken = broken

    def device_count(self) -> int:
        return 2

    def get_device_name(self, device: int) -> str:
        return f"card {device}"

    def mem_get_info(self, device: int) -> tuple[int, int]:
        if self.broken and device == 1:
            raise torch.OutOfMemoryError("CUDA error: uncorrectable ECC error\nCompile with ...")
        return 30 + device, 80


def test_devices_come_in_torchs_order_with_free_and_total_bytes():
    assert read_backend("cuda", TwoCards(broken=False)) == (
        Accelerator(index=0, kind="cuda", name="card 0", total=80, free=30),
        Accelerator(index=1, kind="cuda", name="card 1", total=80, free=31),
    )


def test_a_device_that_does_not_report_its_memory_is_a_clear_error():
    with pytest.raises(ConfigurationError) as caught:
        read_backend("cuda", TwoCards(broken=True))
    assert str(caught.value) == (
        "torch sees cuda:1 but cannot ask it for its memory (CUDA error: uncorrectable ECC "
        "error); check the driver on the node, or hide the device from this container"
    )


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.xpu.is_available(), reason="there is an accelerator"
)
def test_without_any_accelerator_there_are_none():
    assert read_accelerators() == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_real_device_shows_its_memory_and_less_of_it_free_once_some_is_taken():
    before = read_accelerators()
    taken = torch.ones(1 << 28, dtype=torch.uint8, device="cuda:0")
    after = read_accelerators()
    assert len(before) == torch.cuda.device_count()
    assert 0 < before[0].free <= before[0].total
    assert before[0].free - after[0].free >= taken.nbytes
