"""The tokens that a grammar allows, as a reply grows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from predictor.engine.generation.batch_sampler import BatchSampler
from predictor.engine.generation.grammar import Grammars, Vocabulary, executor
from predictor.engine.generation.grammar_queue import Turn
from predictor.engine.generation.sampler import Sampler, best_allowed, expand_bits, log_mass
from predictor.engine.generation.sampling_params import SamplingParams, Token
from predictor.engine.generation.token_mask import AllowedTokens, MaskFactory, TokenMask
from predictor.errors import GenerationFailed, PredictorError

TOKENS = Vocabulary((b"<s>", b"</s>", b"a", b"b", b"ab", b"!", b"c"), (0, 1))
END, A, B, AB, MARK, C = 1, 2, 3, 4, 5, 6
HEADER = '%llguidance {"no_forcing": true}\n'


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with executor("masks") as pool:
        yield pool


def mask_of(lark: str, pool: ThreadPoolExecutor, ends: tuple[int, ...] = (END,)) -> TokenMask:
    grammars = Grammars(TOKENS)
    matcher = grammars.matcher(HEADER + lark)
    return TokenMask(matcher, grammars.size, ends, pool, grammars.longest_tokens)


def allowed(mask: TokenMask) -> list[int]:
    return [int(token) for token in (mask.allowed().bias() == 0).nonzero()[0]]


def test_only_tokens_that_continue_the_text_are_allowed(pool: ThreadPoolExecutor) -> None:
    mask = mask_of('start: "ab" "!"', pool)
    assert allowed(mask) == [A, AB]
    mask.count(A)
    assert allowed(mask) == [B]
    mask.count(B)
    assert (allowed(mask), mask.is_complete) == ([MARK], False)
    mask.count(MARK)
    assert mask.is_complete


def test_text_without_a_choice_is_forced_in_its_longest_tokens(pool: ThreadPoolExecutor) -> None:
    mask = mask_of('start: "ab" "!" ("a" | "b") "c"', pool)
    assert list(mask.forced()) == [AB, MARK]
    mask.count(A)
    assert list(mask.forced()) == [B, MARK]
    mask.count(B)
    mask.count(MARK)
    assert list(mask.forced()) == []
    mask.count(A)
    mask.count(C)
    assert mask.is_complete
    assert list(mask.forced()) == []


def test_tokens_are_allowed_up_to_the_first_that_no_text_continues(
    pool: ThreadPoolExecutor,
) -> None:
    mask = mask_of('start: "a" ("b" | "c") "!"', pool)
    assert mask.count_allowed([A, C, MARK]) == 3
    assert mask.count_allowed([A, A, MARK]) == 1
    assert mask.count_allowed([B]) == mask.count_allowed([]) == 0
    assert allowed(mask) == [A, AB]


def test_end_tokens_are_allowed_where_the_grammar_may_end_and_nowhere_else(
    pool: ThreadPoolExecutor,
) -> None:
    mask = mask_of('start: "a"+ "!"?', pool, ends=(END, MARK))
    assert allowed(mask) == [A]
    mask.count(A)
    assert allowed(mask) == [END, A, MARK]


def test_an_end_token_that_is_text_is_no_text_of_a_grammar(pool: ThreadPoolExecutor) -> None:
    assert allowed(mask_of('start: "a" | "b" "a"', pool, ends=(B,))) == [A]


def test_devices_expand_the_bits_to_the_same_bias(pool: ThreadPoolExecutor) -> None:
    tokens = mask_of('start: "a"+ "!"?', pool).allowed()
    expanded = expand_bits(torch.from_numpy(tokens.bits))[: tokens.size]
    assert expanded.dtype == torch.float32
    assert torch.equal(expanded, torch.from_numpy(tokens.bias()))


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_the_best_token_is_that_of_the_allowed_ones(share: float) -> None:
    chance = torch.Generator().manual_seed(1)
    logits, flags = torch.randn(20_005, generator=chance), torch.rand(20_000, generator=chance)
    flags = flags < share
    allowed = AllowedTokens.of(np.packbits(flags.numpy(), bitorder="little"), len(flags))
    assert (allowed.few is None) == (share == 0.5)
    banned = logits.clone()
    banned[:20_000][~flags] = banned[20_000:] = -torch.inf
    best = int(best_allowed(logits, allowed))
    assert best == int(banned.argmax())
    assert allowed.has(best)
    assert not allowed.has(int((~flags).nonzero()[0]))
    assert not allowed.has(20_000)
    expected = banned.logsumexp(dim=-1, keepdim=True)
    assert torch.allclose(log_mass(banned, banned[best : best + 1]), expected, rtol=1e-6)


def test_rows_beside_a_grammar_are_as_they_would_be_alone(pool: ThreadPoolExecutor) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 9.0, 3.0, 5.0, 4.0]] * 3)
    greedy = SamplingParams(8)
    confined = Sampler(greedy, [0], frozenset([END]), mask_of('start: "a" | "!"', pool))
    seeded = SamplingParams(8, temperature=1.0, seed=5)
    alone = BatchSampler().sample([Sampler(seeded, [0])], logits[:1])
    together = BatchSampler().sample([Sampler(seeded, [0]), confined, Sampler(greedy, [0])], logits)
    assert together == [*alone, Token(MARK), Token(B)]


def test_a_grammar_goes_before_other_bans_and_before_ids_without_a_token(
    pool: ThreadPoolExecutor,
) -> None:
    params = SamplingParams(8, suppress_tokens=(A, AB))
    sampler = Sampler(params, [0], frozenset([END]), mask_of('start: "ab"', pool))
    logits = torch.tensor([[0.0, 1.0, 2.0, 9.0, 3.0, 5.0, 4.0, 99.0]])
    assert BatchSampler().sample([sampler], logits) == [Token(AB)]


def test_a_grammar_that_becomes_too_complex_fails_its_own_row_before_any_is_drawn(
    pool: ThreadPoolExecutor,
) -> None:
    mask = mask_of('start: "bbbb"' + ' "a"?' * 1000, pool)
    for token in (B, B, B, B):
        assert mask.allowed().has(token)
        mask.count(token)
    rows = [Sampler(SamplingParams(8), [0]), Sampler(SamplingParams(8), [0], frozenset(), mask)]
    first, second = BatchSampler().sample(rows, torch.ones(2, 7))
    assert isinstance(first, Token)
    assert isinstance(second, GenerationFailed)


def test_a_sequence_that_is_cancelled_while_its_grammar_is_compiled_does_not_begin() -> None:
    factory, gate = MaskFactory(lambda action: action()), threading.Event()
    factory.use_vocabulary(TOKENS)
    begun: list[object] = []
    over = threading.Event()

    def begin_last(_mask: TokenMask | None) -> None:
        over.set()

    def fail(error: PredictorError) -> None:
        begun.append(error)

    factory.begin(1, None, (), begun.append, fail)
    assert begun == [None]
    grammar = HEADER + 'start: "a"'
    assert factory._queue is not None
    factory._queue.put(Turn("", gate.wait))
    factory.begin(2, grammar, (END,), begun.append, fail)
    factory.cancel(2)
    factory.begin(3, grammar, (END,), begin_last, fail)
    gate.set()
    assert over.wait(30)
    assert begun == [None]
