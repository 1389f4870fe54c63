"""Which errors of a start a restart may mend, and the exit code that says so."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from predictor.errors import LoadFailed, ModelUnusable, restart_may_help, start_error


def of_torch(run):
    """The error that torch raises."""
    try:
        run()
    except Exception as error:
        return error
    raise AssertionError("no error")


def caused_by(error, cause):
    """An error that another one has caused."""
    error.__cause__ = cause
    return error


MENDED = {
    "a volume": OSError(errno.EIO, "Input/output error"),
    "a timeout": TimeoutError("timed out"),
    "memory": MemoryError(),
    "a GPU's memory": torch.OutOfMemoryError("CUDA out of memory."),
    "a GPU": torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    "main memory": of_torch(lambda: torch.empty(2**60)),
    "threads": RuntimeError("can't start new thread"),
    "no GPU": RuntimeError("No CUDA GPUs are available"),
    "a driver": RuntimeError("Found no NVIDIA driver on your system."),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    "NCCL": RuntimeError("NCCL error in: ProcessGroupNCCL.cpp, unhandled system error"),
    "a volume in torch": RuntimeError("unable to open file </x>: Input/output error (5)"),
    "a volume in safetensors": SafetensorError("I/O error: Stale file handle (os error 116)"),
    "a full volume": OSError(errno.ENOSPC, "No space left on device"),
    "a volume below": caused_by(OSError("Can't load it."), OSError(errno.EIO, "x")),
}

KEPT = {
    "a shape": of_torch(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3)),
    "a tensor on meta": of_torch(lambda: torch.empty(2, device="meta").tolist()),
    "an attribute": AttributeError("'Output' object has no attribute 'cache'"),
    "a name": KeyError("model.embed_tokens.weight"),
    "a value": ValueError("unknown activation"),
    "a package": ImportError("needs the package timm"),
    "a file": FileNotFoundError(errno.ENOENT, "No such file or directory", "modeling_x.py"),
    "a folder": NotADirectoryError(errno.ENOTDIR, "Not a directory"),
    "a permission": PermissionError(errno.EACCES, "Permission denied"),
    "a file of transformers": OSError("/m does not appear to have a file named modeling_x.py."),
    "a file below": caused_by(OSError("Can't load it."), FileNotFoundError(errno.ENOENT, "x")),
    "a file in torch": RuntimeError("unable to open file </x>: No such file or directory (2)"),
    "a header": SafetensorError("Error while deserializing header: header too large"),
}


@pytest.mark.parametrize("cause", MENDED)
def test_a_restart_may_mend_devices_volumes_and_memory(cause):
    assert restart_may_help(MENDED[cause])
    assert start_error(MENDED[cause], "It failed.").exit_code == LoadFailed.exit_code == 1


@pytest.mark.parametrize("cause", KEPT)
def test_a_restart_does_not_mend_code_and_files(cause):
    assert not restart_may_help(KEPT[cause])
    assert start_error(KEPT[cause], "It failed.").exit_code == ModelUnusable.exit_code == 78
