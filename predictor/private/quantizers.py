"""How `from_pretrained` loads packed layers: through a quantizer of our own.

Read in transformers 5.23.0: ``quantizers/base.py``, ``quantizers/auto.py``,
``utils/quantization_config.py`` and ``core_model_loading.py``. A quantizer may replace modules of
the model before weights are loaded, and change the conversions of stored tensors. Tensors of
integers and of 8 bits are then loaded as they are.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from predictor.private.environment import variable_set

_METHOD = "predictor"
"""The name of our method among transformers' quantisation methods."""

Replace = Callable[[Any], None]
"""Puts packed layers into a model, which is on the meta device."""


def quantization_config(replace: Replace) -> Any:
    """Return a ``quantization_config`` for `from_pretrained` that loads packed layers.

    Args:
        replace: Puts the packed layers into the model, and their names, of which their conversions
            are made.
    """
    return _config_class()(replace)


def one_tensor_at_a_time() -> contextlib.AbstractContextManager[None]:
    """Have `from_pretrained` read the tensors of the next parameter after packing this one's.

    Else its threads read ahead, and an accelerator holds weights unpacked that are yet to be packed
    (``core_model_loading.py``).
    """
    return variable_set("HF_DEACTIVATE_ASYNC_LOAD")


@functools.cache
def _config_class() -> Any:
    """Return the class of our configs, after registering it and its quantizer."""
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    from predictor.private.conversions import packed_conversions

    class Config(QuantizationConfigMixin):
        def __init__(self, replace: Replace) -> None:
            super().__init__(_METHOD)  # type: ignore[arg-type]
            self.replace = replace

        def to_dict(self) -> dict[str, Any]:
            return {"quant_method": _METHOD}

    class Quantizer(HfQuantizer):
        def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
            super().__init__(quantization_config, **{**kwargs, "pre_quantized": True})

        def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
            config: Any = self.quantization_config
            config.replace(model)

        def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
            self.remove_quantization_config(model)  # type: ignore[no-untyped-call]

        def update_weight_conversions(self, weight_conversions: Any, model: Any) -> Any:
            return packed_conversions(model, weight_conversions)

        def is_serializable(self) -> bool:
            return False

        @property
        def is_trainable(self) -> bool:
            return False

    register_quantization_config(_METHOD)(Config)
    register_quantizer(_METHOD)(Quantizer)
    return Config
