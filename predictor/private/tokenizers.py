"""transformers' tokenizers, in a process that need not have torch.

Read in transformers 5.23.0: ``utils/import_utils.py``, ``utils/logging.py``,
``tokenization_utils_tokenizers.py`` and ``convert_slow_tokenizer.py``.

The process that answers requests uses tokenizers and has no use for torch, whose import takes
190 MiB and seconds. `tokenizer_class` keeps transformers from importing it there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from typing import Any

from predictor.private.environment import variable_set
from predictor.private.transformers import TRANSFORMERS
from predictor.private.versions import check, uncalled

TOKENIZERS = uncalled("transformers", "AutoTokenizer.from_pretrained")

_NO_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
"""The variable that keeps transformers from saying that PyTorch was not found
(``utils/logging.py``)."""


def tokenizer_class(*, with_torch: bool = False) -> Any:
    """Return ``transformers.AutoTokenizer``, by default without an import of torch.

    While transformers is imported, it looks whether there is a torch (``import_utils.py``,
    ``_is_package_available``), and if so it imports that. If this process has imported transformers
    already, nothing is changed.

    Args:
        with_torch: Whether torch may be imported, as code that comes with a tokenizer may need.
    """
    if with_torch or "transformers" in sys.modules:
        check(TRANSFORMERS, *TOKENIZERS)
    else:
        with _hidden("torch"), variable_set(_NO_ADVICE):
            check(TRANSFORMERS, *TOKENIZERS)
    from transformers import AutoTokenizer

    _share_sentencepiece_schema()
    return AutoTokenizer


def _share_sentencepiece_schema() -> None:
    """Have sentencepiece use transformers' copy of its schema, if that has been imported.

    protobuf refuses the same schema from two modules. transformers takes the failure for a sign
    that the file is of another kind, and asks for another package
    (``tokenization_utils_tokenizers.py``, ``convert_slow_tokenizer.py``).
    """
    copy = sys.modules.get("transformers.utils.sentencepiece_model_pb2_new")
    if copy is not None:
        sys.modules.setdefault("sentencepiece.sentencepiece_model_pb2", copy)


@contextlib.contextmanager
def _hidden(hidden: str) -> Iterator[None]:
    """Have ``importlib.util.find_spec`` not find a package; it can be imported all the same."""
    original = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == hidden else original(name, package)

    importlib.util.find_spec = find_spec
    try:
        yield
    finally:
        importlib.util.find_spec = original
