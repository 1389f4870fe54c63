"""In which format each layer of a quantised checkpoint is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from predictor.linear.formats.bitsandbytes import BitsAndBytes4
from predictor.linear.formats.format import WeightFormat
from predictor.linear.published.layer_names import Matcher, every_layer


@dataclass(frozen=True, slots=True)
class Rule:
    """What a config says of some layers.

    Attributes:
        matches: Which layers.
        format: Their format, or None if they are not quantised.
    """

    matches: Matcher
    format: WeightFormat | None


@dataclass(frozen=True, slots=True)
class Scheme:
    """In which format each layer is.

    Attributes:
        rules: Of the rules that match a layer the first one holds. A layer that none matches is
            not quantised.
    """

    rules: Sequence[Rule]

    @classmethod
    def uniform(cls, weights: WeightFormat, left_out: Matcher) -> Scheme:
        """Return the scheme that has one format for all layers but some."""
        return cls((Rule(left_out, None), Rule(every_layer, weights)))

    @property
    def title(self) -> str:
        """The formats as users see them."""
        titles = (rule.format.title for rule in self.rules if rule.format is not None)
        return ", ".join(dict.fromkeys(titles))

    def format_of(self, name: str, in_features: int = 0) -> WeightFormat | None:
        """Return the format of a layer, or None if it is not quantised.

        Args:
            name: The layer's name in the checkpoint.
            in_features: The inputs of the layer, which one format needs on the meta device.
        """
        for rule in self.rules:
            if rule.matches(name):
                if isinstance(rule.format, BitsAndBytes4):
                    return replace(rule.format, in_features=in_features)
                return rule.format
        return None
