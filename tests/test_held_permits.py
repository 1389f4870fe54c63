"""Permits are held until an answer is sent."""

from __future__ import annotations

from predictor.admission import AdmissionController, AdmissionLimits
from predictor.held_permits import release_when_sent, until_sent
from predictor.request_limits import leave
from predictor.tasks.request import GenerationParameters, GenerationRequest, Prompt


def test_a_permit_is_held_until_the_answer_is_sent() -> None:
    admission = AdmissionController(AdmissionLimits(1, 1, 9, 9))
    with until_sent() as held:
        release_when_sent(admission.enter(1, 5))
        assert admission.tokens == 5
        held.close()
        assert admission.tokens == 0
        release_when_sent(admission.enter(1, 5))
    assert admission.tokens == 0
    release_when_sent(admission.enter(1, 5))
    assert admission.tokens == 0


def test_only_a_large_answer_holds_its_permit() -> None:
    admission = AdmissionController(AdmissionLimits(1, 1, 9, 9))
    for parameters in (GenerationParameters(), GenerationParameters(prompt_logprobs=0)):
        request = GenerationRequest((Prompt("a", parameters),))
        with until_sent():
            leave(admission.enter(1, 5), request)
            assert admission.tokens == (5 if request.scores_prompts else 0)
