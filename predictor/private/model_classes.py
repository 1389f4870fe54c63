"""Which classes of transformers an auto class makes of a config, and such a class without parts.

Read in transformers 5.23.0: ``models/auto/auto_factory.py`` and ``modeling_utils.py``. A model
class is made by `_BaseAutoModelClass.from_config` as here, without code that comes with a model.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from predictor.private.transformers import TRANSFORMERS
from predictor.private.versions import Interface, check, uncalled

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_AUTO = "transformers.models.auto.auto_factory"

INTERFACES = (
    Interface(_AUTO, "_get_model_class", ("config", "model_mapping")),
    *uncalled(_AUTO, "_model_mapping", of="_BaseAutoModelClass"),
    *uncalled(_AUTO, "from_config", of="_BaseAutoModelClass"),
    *uncalled(
        "transformers.modeling_utils",
        "_from_config",
        "_keys_to_ignore_on_load_unexpected",
        "device",
        "get_expanded_tied_weights_keys",
        of="PreTrainedModel",
    ),
)

_KEY_MAPPING = "stored_key_mapping"
"""The attribute of a model whose weights are stored under a prefix: the ``key_mapping`` of that."""

_DEVICE = "execution_device"
"""The attribute of a model whose weights are offloaded that is the device that it computes on."""


def class_made_by(factory: Any, config: PreTrainedConfig) -> tuple[Any, PreTrainedConfig] | None:
    """Return the model class that an auto class makes of a config, and the class's own config.

    Args:
        factory: An auto class.
        config: A config.

    Returns:
        None if the auto class makes no model of it.
    """
    check(TRANSFORMERS, *INTERFACES)
    from transformers.models.auto.auto_factory import _get_model_class

    mapping = factory._model_mapping
    if type(config) not in mapping:
        return None
    get_class: Any = _get_model_class
    model_class = get_class(config, mapping)
    text = config.sub_configs.get("text_config")
    if text is not None and getattr(model_class, "config_class", None) == text:
        return model_class, config.get_text_config()
    return model_class, config


def build(model_class: Any, config: PreTrainedConfig, dtype: Any) -> PreTrainedModel:
    """Return a new model of a class on torch's default device."""
    model: PreTrainedModel = model_class._from_config(config, dtype=dtype)
    return model


@contextlib.contextmanager
def packages_optional(stand_in: Any) -> Iterator[None]:
    """Have auto classes make a stand-in of a part whose package is not installed.

    Args:
        stand_in: Makes the module that takes the part's place, of the ``error`` of the import.
    """
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    library: Any = _BaseAutoModelClass
    with contextlib.ExitStack() as undone:
        for factory in [library, *library.__subclasses__()]:
            original = vars(factory).get("from_config")
            if original is not None:
                undone.callback(setattr, factory, "from_config", original)
                factory.from_config = _with_stand_in(original.__func__, stand_in)
        yield


def _with_stand_in(from_config: Any, stand_in: Any) -> Any:
    def build_or_stand_in(cls: Any, config: Any, **kwargs: Any) -> Any:
        try:
            return from_config(cls, config, **kwargs)
        except ImportError as error:
            return stand_in(error=error)

    return classmethod(build_or_stand_in)  # type: ignore[arg-type]


def class_without(model_class: Any, names: Collection[str], stand_in: Any) -> Any:
    """Return a class whose models have stand-ins in place of some parts from the start.

    Args:
        model_class: A model class.
        names: The names of these parts.
        stand_in: Makes a module that takes the place of one, of the ``whole`` model, or of the
            ``error`` of an import.
    """

    def initialize(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        with packages_optional(stand_in):
            model_class.__init__(self, config, *args, **kwargs)
        _replace_parts(self, names, stand_in)

    own = {"__init__": initialize, "__module__": model_class.__module__}
    return type(model_class.__name__, (model_class,), own)


def _replace_parts(model: PreTrainedModel, names: Collection[str], stand_in: Any) -> None:
    """Replace submodules of a model by stand-ins, and forget the weights that they tie.

    Their stored weights are expected, and left out.
    """
    for name in names:
        model.set_submodule(name, stand_in(whole=model))
    patterns = {rf"^{re.escape(name)}\." for name in names}
    model._keys_to_ignore_on_load_unexpected = {
        *(model._keys_to_ignore_on_load_unexpected or ()),
        *patterns,
    }
    prefixes = tuple(f"{name}." for name in names)
    tied: dict[str, str] = model.all_tied_weights_keys
    for target, source in list(tied.items()):
        if target.startswith(prefixes) or source.startswith(prefixes):
            del tied[target]


def set_device(model: PreTrainedModel, device: Any) -> None:
    """Have a model of which weights are offloaded name the device that it computes on.

    transformers names the device of the first weight, to which some models move their inputs.
    """
    from transformers import PreTrainedModel

    library: Any = PreTrainedModel
    library.device = property(_device)
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.device.type == "meta":
            vars(module)[_DEVICE] = device


def _device(model: Any) -> Any:
    own = vars(model).get(_DEVICE)
    return next(weight.device for weight in model.parameters()) if own is None else own


def set_key_mapping(model: PreTrainedModel, mapping: dict[str, str]) -> None:
    """Say under which prefix the weights of a model are stored."""
    setattr(model, _KEY_MAPPING, mapping)


def key_mapping_of(model: PreTrainedModel) -> dict[str, str] | None:
    """Return the patterns of stored names and what becomes of them; None without a prefix."""
    mapping: dict[str, str] | None = getattr(model, _KEY_MAPPING, None)
    return mapping
