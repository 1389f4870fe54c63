"""The keys of OpenAI's requests, as OpenAI and vLLM have them.

A key is followed, refused with the reason, or ignored. Refused are those that would change the
answer, unless their value asks for nothing. Each key that no table has is ignored with one line in
the log: clients send keys of other servers, and a request that worked there works here. A key with
the value ``null`` is absent.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from predictor.errors import RequestError
from predictor.protocol.openai import structured
from predictor.sentences import quote

logger = logging.getLogger(__name__)

_MOST_NAMES = 64
"""Names that are logged, and names of one request that are looked at: clients choose them."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a key is refused.

    Attributes:
        reason: The end of the sentence.
        harmless: The values that ask for nothing, with which it is ignored.
    """

    reason: str
    harmless: tuple[object, ...] = ()


_SAMPLER = "the sampler has no such step"
_TEXT = "replies are the text of whole tokens without the special ones"
_CHOICE = "which tokens may follow is set by 'logit_bias'"
_MEDIA = "this server answers with text alone"
_TEMPLATE = "the model's own chat template is used as it is"

REFUSED: Mapping[str, Refusal] = {
    "suffix": Refusal("a reply continues its prompt, and fills no gap", ("",)),
    "functions": Refusal("'tools' has taken its place", ([],)),
    "function_call": Refusal("'tool_choice' has taken its place", ("none",)),
    "modalities": Refusal("only ['text'] is", (["text"],)),
    "audio": Refusal(_MEDIA),
    "prediction": Refusal("replies are not predicted by the client"),
    "web_search_options": Refusal("this server has no access to the web"),
    "moderation": Refusal("this server moderates nothing"),
    "use_beam_search": Refusal(_SAMPLER, (False,)),
    "length_penalty": Refusal(_SAMPLER, (1,)),
    "include_stop_str_in_output": Refusal(_TEXT, (False,)),
    "skip_special_tokens": Refusal(_TEXT, (True,)),
    "spaces_between_special_tokens": Refusal(_TEXT, (True,)),
    "logits_processors": Refusal(_CHOICE, ([],)),
    "return_tokens_as_token_ids": Refusal("'tokenize' returns token ids", (False,)),
    "return_token_ids": Refusal("'tokenize' returns token ids", (False,)),
    "truncate_prompt_tokens": Refusal("a prompt that is too long is refused"),
    "add_generation_prompt": Refusal(_TEMPLATE, (True,)),
    "continue_final_message": Refusal(_TEMPLATE, (False,)),
    "chat_template": Refusal(_TEMPLATE, ("",)),
    "documents": Refusal(_TEMPLATE, ([],)),
    "mm_processor_kwargs": Refusal(_MEDIA, ({},)),
}
"""Keys of completions and chats that would change the answer."""

IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "verbosity",
        "priority",
        "request_id",
    }
    | structured.IGNORED
)
"""Keys of completions and chats that change nothing here."""


def split_keys(
    document: Mapping[str, object],
    followed: Collection[str],
    *,
    refused: Mapping[str, Refusal] = REFUSED,
    ignored: Collection[str] = IGNORED,
) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return the keys that are followed, and the names of those that no table has.

    Args:
        document: The body.
        followed: Keys that the route follows.
        refused: Keys that would change the answer.
        ignored: Keys that change nothing.

    Raises:
        RequestError: A key would change the answer.
    """
    present = {key: value for key, value in document.items() if value is not None}
    for key, refusal in refused.items():
        if key in present and key not in followed and present[key] not in refusal.harmless:
            raise RequestError(f"{key} is not supported: {refusal.reason}.")
    given = {key: value for key, value in present.items() if key in followed}
    tables = {*followed, *refused, *ignored}
    strange = (key for key in present if key not in tables)
    return given, tuple(strange)[:_MOST_NAMES]


class IgnoredKeys:
    """Logs the name of each key that no table has, once, up to a bound."""

    def __init__(self) -> None:
        """Start with none logged."""
        self._names: set[str] = set()

    def log(self, names: Iterable[str]) -> None:
        """Log the names that were not logged before."""
        for name in names:
            if name not in self._names and len(self._names) < _MOST_NAMES:
                self._names.add(name)
                logger.warning("Requests have the key %s, which is ignored", quote(name))
