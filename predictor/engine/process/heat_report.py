"""Reports the heat of experts to the process that answers requests."""

from __future__ import annotations

from predictor.engine.process.channel import Channel
from predictor.engine.process.messages import ExpertsUsed
from predictor.metric_updates import MetricRecorder
from predictor.metrics import EXPERT_HOTTEST
from predictor.mixture.heat import ExpertHeat, LayerHeat


class HeatReport:
    """Sends the heat of a model's experts when it has changed; called by one thread."""

    def __init__(self, channel: Channel, heat: ExpertHeat, model_name: str) -> None:
        """Send nothing yet.

        Args:
            channel: Takes the messages.
            heat: The heat of the model's experts.
            model_name: The name that the model is served under.
        """
        self._channel, self._heat, self._model = channel, heat, model_name
        self._recorder = MetricRecorder()
        self._last: tuple[LayerHeat, ...] = ()

    def send(self) -> None:
        """Send the heat, unless it is as it was. A model without experts sends nothing."""
        layers = self._heat.read()
        if layers == self._last:
            return
        self._last = layers
        for layer in layers:
            hottest = self._recorder.child(EXPERT_HOTTEST, self._model, layer.name)
            hottest.set(layer.hottest_share)
        self._channel.send(ExpertsUsed(layers, self._recorder.take()))
