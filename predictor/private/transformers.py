"""How transformers lays out a cache, places and converts weights, names classes, reports progress.

Read in transformers 5.23.0: ``cache_utils.py``, ``modeling_utils.py``,
``integrations/accelerate.py``, ``integrations/moe.py``, ``models/auto/modeling_auto.py``,
``conversion_mapping.py``, ``core_model_loading.py``, ``utils/import_utils.py``,
``utils/logging.py`` and ``pipelines/token_classification.py``. Functions import these modules when
they are called: `modeling_utils` takes seconds, and `plan` and the migration need only a few.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from predictor.private.versions import Interface, Library, check, uncalled

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRANSFORMERS = Library("transformers", "5.23", "5.24")

ENTITIES = (
    Interface(
        "transformers.pipelines.token_classification",
        "TokenClassificationPipeline.gather_pre_entities",
        (
            "sentence",
            "input_ids",
            "scores",
            "offset_mapping",
            "special_tokens_mask",
            "aggregation_strategy",
        ),
    ),
    Interface(
        "transformers.pipelines.token_classification",
        "TokenClassificationPipeline.aggregate",
        ("pre_entities", "aggregation_strategy"),
    ),
    *uncalled("transformers.pipelines.token_classification", "AggregationStrategy"),
)

MODELS = (
    Interface("transformers.cache_utils", "get_layer_types_and_kwargs", ("config",)),
    Interface(
        "transformers.conversion_mapping", "get_model_conversion_mapping", ("model", "key_mapping")
    ),
    *uncalled(
        "transformers.cache_utils",
        "CacheLayerMixin",
        "DummyLayer",
        "DynamicIndexedLayer",
        "DynamicLayer",
        "DynamicSlidingWindowLayer",
        "LinearAttentionAndFullAttentionLayer",
        "LinearAttentionAndSlidingWindowAttentionLayer",
        "LinearAttentionCacheLayerMixin",
        "LinearAttentionLayer",
    ),
    *uncalled("transformers.masking_utils", "ALL_MASK_ATTENTION_FUNCTIONS"),
    Interface(
        "transformers.integrations.accelerate",
        "accelerate_dispatch",
        (
            "model",
            "hf_quantizer",
            "device_map",
            "offload_folder",
            "offload_index",
            "offload_buffers",
        ),
    ),
    Interface("transformers.utils.logging", "set_tqdm_hook", ("hook",)),
    Interface(
        "transformers.core_model_loading",
        "rename_source_key",
        (
            "source_key",
            "weight_renamings",
            "weight_converters",
            "base_model_prefix",
            "meta_state_dict",
        ),
    ),
    Interface("transformers.core_model_loading", "dot_natural_key", ("s",)),
    *uncalled("transformers.core_model_loading", "WeightConverter", "WeightRenaming"),
    *uncalled("transformers.integrations.moe", "ALL_EXPERTS_FUNCTIONS"),
    *uncalled("transformers.quantizers.auto", "register_quantization_config", "register_quantizer"),
    *uncalled(
        "transformers.quantizers.base",
        "_process_model_before_weight_loading",
        "_process_model_after_weight_loading",
        "update_weight_conversions",
        "remove_quantization_config",
        of="HfQuantizer",
    ),
    *uncalled("transformers.integrations.moe", "use_experts_implementation"),
    *uncalled(
        "transformers.modeling_utils", "accelerate_dispatch", "_get_resolved_checkpoint_files"
    ),
    *uncalled("transformers.generation", "GenerationMixin._supports_default_dynamic_cache"),
    *uncalled(
        "transformers.modeling_utils",
        "_is_stateful",
        "_no_split_modules",
        "_skip_keys_device_placement",
        "_keys_to_ignore_on_load_missing",
        "tie_weights",
        of="PreTrainedModel",
    ),
)

_WEIGHTS_BAR = "Loading weights"
"""The description of the progress bar around transformers' loop over the weights."""


def token_aggregation(tokenizer: Any, labels: Sequence[str]) -> Callable[..., list[dict[str, Any]]]:
    """Return the function that makes entities of labelled tokens, as transformers' pipeline does.

    Its arguments are the sentence, the token ids, the scores of shape (tokens, labels), the offsets
    and the special tokens' mask, one for each token, and the name of an ``AggregationStrategy``.

    Args:
        tokenizer: The tokenizer.
        labels: The labels, in the order of the scores.
    """
    check(TRANSFORMERS, *ENTITIES)
    from transformers.pipelines.token_classification import (
        AggregationStrategy,
        TokenClassificationPipeline,
    )

    pipeline: Any = object.__new__(TokenClassificationPipeline)  # its constructor needs a model
    pipeline.tokenizer = tokenizer
    config = SimpleNamespace(id2label=dict(enumerate(labels)))
    pipeline.model = SimpleNamespace(config=config)

    def aggregate(*arguments: Any) -> list[dict[str, Any]]:
        *given, name = arguments
        strategy = AggregationStrategy(name)
        tokens = pipeline.gather_pre_entities(*given, strategy)
        entities: list[dict[str, Any]] = pipeline.aggregate(tokens, strategy)
        return entities

    return aggregate


def check_models() -> None:
    """Check what the process that has the model uses of transformers, before it plans.

    Raises:
        ConfigurationError: Some of it is missing, or takes other parameters.
    """
    check(TRANSFORMERS, *MODELS)


def is_stateful(model: PreTrainedModel) -> bool:
    """Return whether a model keeps a state that is not a cache of keys and values."""
    return bool(getattr(model, "_is_stateful", False))


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Return the names of tied parameters, and the names of those that they are tied to."""
    names: dict[str, str] = dict(model.all_tied_weights_keys or {})
    return names


def unsplit_classes(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of the module classes that a model does not let be split among devices."""
    return frozenset(model._no_split_modules or ())


def class_names(table: str) -> Mapping[str, tuple[str, ...]]:
    """Return the names of model classes by model type.

    Args:
        table: A table of `modeling_auto`, such as ``MODEL_FOR_CAUSAL_LM_MAPPING_NAMES``.
    """
    check(TRANSFORMERS, *uncalled("transformers.models.auto.modeling_auto", table))
    from transformers.models.auto import modeling_auto

    mapping: Mapping[str, Any] = getattr(modeling_auto, table)
    return {
        model_type: (names,) if isinstance(names, str) else tuple(names)
        for model_type, names in mapping.items()
    }


def skipped_arguments(model: Any) -> Sequence[str] | None:
    """Return the arguments of a block that stay on their device, such as the KV cache."""
    names: Sequence[str] | None = getattr(model, "_skip_keys_device_placement", None)
    return names


def accelerate_dispatch(
    model: PreTrainedModel,
    quantizer: Any,
    device_map: dict[str, int | str],
    folder: Any,
    index: Mapping[str, Mapping[str, str]],
    offload_buffers: bool,
) -> None:
    """Attach Accelerate's hooks to a model that `from_pretrained` has loaded."""
    from transformers.integrations import accelerate

    dispatch: Any = accelerate.accelerate_dispatch
    dispatch(model, quantizer, device_map, folder, index, offload_buffers)


@contextlib.contextmanager
def dispatch_replaced(stand_in: Callable[..., None]) -> Iterator[None]:
    """Have `from_pretrained` call a function in place of `accelerate_dispatch`.

    Args:
        stand_in: Called with the arguments of `accelerate_dispatch`.
    """
    from transformers import modeling_utils

    library: Any = modeling_utils
    original = library.accelerate_dispatch
    library.accelerate_dispatch = stand_in
    try:
        yield
    finally:
        library.accelerate_dispatch = original


@contextlib.contextmanager
def weights_reported(done: Callable[[str], None]) -> Iterator[None]:
    """Replace the progress bar over the weights by calls of a function.

    Args:
        done: Called with the name of each tensor that was loaded.
    """
    from transformers.utils import logging

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("desc") != _WEIGHTS_BAR:
            return factory(*args, **kwargs)
        return _report(args[0], done)

    previous = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)


def _report(weights: Iterable[tuple[str, Any]], done: Callable[[str], None]) -> Iterator[Any]:
    for name, mapping in weights:
        yield name, mapping
        done(name)
