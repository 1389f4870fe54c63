"""Which errors of a start a restart may mend, and the exit code that says so."""

import errno

import pytest
import torch

from predictor.errors import LoadFailed, ModelUnusable, restart_may_help, start_error


def of_torch(run):
    """The error that torch raises."""
    try:
        run()
    except Exception as error:
        return error
    raise AssertionError("no error")


MENDED = {
    "a volume": OSError(errno.EIO, "Input/output error"),
    "a timeout": TimeoutError("timed out"),
    "memory": MemoryError(),
    "a GPU's memory": torch.OutOfMemoryError("CUDA out of memory."),
    "a GPU": torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    "main memory": of_torch(lambda: torch.empty(2**60)),
    "threads": RuntimeError("can't start new thread"),
}

KEPT = {
    "a shape": of_torch(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3)),
    "a tensor on meta": of_torch(lambda: torch.empty(2, device="meta").tolist()),
    "an attribute": AttributeError("'Output' object has no attribute 'cache'"),
    "a name": KeyError("model.embed_tokens.weight"),
    "a value": ValueError("unknown activation"),
    "a package": ImportError("needs the package timm"),
}


@pytest.mark.parametrize("cause", MENDED)
def test_a_restart_may_mend_devices_volumes_and_memory(cause):
    assert restart_may_help(MENDED[cause])
    assert start_error(MENDED[cause], "It failed.").exit_code == LoadFailed.exit_code == 1


@pytest.mark.parametrize("cause", KEPT)
def test_a_restart_does_not_mend_code_and_files(cause):
    assert not restart_may_help(KEPT[cause])
    assert start_error(KEPT[cause], "It failed.").exit_code == ModelUnusable.exit_code == 78
