"""Prompts become tokens and tokens become text."""

from __future__ import annotations

import asyncio
from array import array
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from predictor.engine.generation.sampling_params import SamplingParams, SequenceCallback, Token
from predictor.errors import GenerationFailed, PromptTooLong, RequestError
from predictor.tasks.answers import Completion
from predictor.tasks.generation import TextGeneration
from predictor.tasks.generation_config import Defaults
from predictor.tasks.request import GenerationParameters, GenerationRequest, Prompt
from predictor.tasks.token_lists import special_tokens, with_special_stops
from tests.checkpoints import byte_tokenizer
from tests.conftest import Checkpoints
from tests.serving import Collected, Up, bring_up

DEMO = Path(__file__).parents[2] / "examples" / "demo-model"
README_PROMPT = "Today the weather is really nice and I am planning on"


@pytest.fixture(scope="module")
def demo() -> Up:
    return bring_up(DEMO, device_map="cpu", max_model_len=256, prefill_chunk=64)


def ask(task: TextGeneration, text: str | array[int], **parameters: Any) -> Any:
    prompt = Prompt(text, GenerationParameters(**parameters))
    return run(task, prompt)[0]


def run(task: TextGeneration, *prompts: Prompt) -> tuple[Completion, ...]:
    return asyncio.run(task.prepare(GenerationRequest(prompts)).complete())


def test_the_demo_continues_the_readmes_prompt_like_transformers_does(demo: Up) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype="auto").eval()
    inputs = tokenizer(README_PROMPT, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    expected = tokenizer.decode(tokens[0], skip_special_tokens=True)
    result = ask(demo.task, README_PROMPT, max_new_tokens=30, return_full_text=True, temperature=0)
    assert result.text == expected
    assert result.prompt_tokens == inputs.input_ids.shape[1]
    assert result.completion_tokens == 30


def test_the_reply_alone_begins_where_the_prompt_ends(demo: Up) -> None:
    reply = ask(demo.task, README_PROMPT, max_new_tokens=10)
    whole = ask(demo.task, README_PROMPT, max_new_tokens=10, return_full_text=True)
    assert whole.text == README_PROMPT + reply.text
    assert reply.text.startswith(" ")


def test_the_demo_ends_by_itself(demo: Up) -> None:
    result = ask(demo.task, README_PROMPT, max_new_tokens=200)
    assert result.finish_reason == "stop"
    assert result.completion_tokens < 200
    assert "</s>" not in result.text


def test_a_stop_sequence_is_cut_out_even_across_tokens(demo: Up) -> None:
    whole = ask(demo.task, README_PROMPT, max_new_tokens=60).text
    stop = whole[len(whole) // 2 - 3 : len(whole) // 2 + 4]  # begins and ends within words
    result = ask(demo.task, README_PROMPT, max_new_tokens=60, stop=(stop, "never in it"))
    assert result.text == whole[: whole.index(stop)]
    assert result.finish_reason == "stop"
    assert result.completion_tokens < 60


def test_prompts_of_one_request_are_answered_in_order_with_their_own_parameters(demo: Up) -> None:
    texts = ["It was raining in the morning, so", "My friend Anna likes to", "The train"]
    prompts = tuple(
        Prompt(text, GenerationParameters(max_new_tokens=count))
        for count, text in enumerate(texts, start=3)
    )
    result = run(demo.task, *prompts)
    assert [completion.completion_tokens for completion in result] == [3, 4, 5]
    assert result[1] == ask(demo.task, texts[1], max_new_tokens=4)


def test_one_prompt_that_is_too_long_stops_the_request_before_any_is_generated(demo: Up) -> None:
    prompts = (
        Prompt("short", GenerationParameters()),
        Prompt("long " * 500, GenerationParameters()),
    )
    with pytest.raises(PromptTooLong) as raised:
        demo.task.prepare(GenerationRequest(prompts))
    assert raised.value.limit == 256
    assert str(raised.value.tokens - 1) in str(raised.value)
    assert "256" in str(raised.value)


def test_a_prompt_may_fill_the_context_but_for_one_token(checkpoints: Checkpoints) -> None:
    task = bring_up(checkpoints("bloom"), max_model_len=32).task
    result = ask(task, "x" * 31)
    assert (result.prompt_tokens, result.completion_tokens) == (31, 1)
    with pytest.raises(PromptTooLong):
        ask(task, "x" * 32)


def test_more_new_tokens_than_there_is_room_for_are_refused(checkpoints: Checkpoints) -> None:
    task = bring_up(checkpoints("bloom"), max_model_len=32).task
    assert ask(task, "x" * 20, max_new_tokens=12).completion_tokens <= 12
    with pytest.raises(PromptTooLong, match="13 new tokens"):
        ask(task, "x" * 20, max_new_tokens=13)


def test_text_of_any_script_comes_back_whole(demo: Up) -> None:
    text = "Zürich 東京 🙂 é"
    result = ask(demo.task, text, max_new_tokens=1, return_full_text=True)
    assert result.text.startswith(text)


class Recorder:
    """Stands in for the engine: keeps the parameters; no tokens are generated in these tests."""

    def __init__(self) -> None:
        self.params: list[SamplingParams] = []

    def new_request(self) -> int:
        return 0

    def submit(
        self,
        prompt: Any,
        sampling: SamplingParams,
        listener: SequenceCallback,
        *,
        request: int,
        scope: bytes,
        is_bulk: bool,
    ) -> int:
        self.params.append(sampling)
        listener.on_token(Token(7))
        listener.on_finish("length")
        return 0


def sampling_params(
    config: GenerationConfig, max_length: int | None = None, **parameters: Any
) -> SamplingParams:
    recorder = Recorder()
    defaults = Defaults.of(config, max_length)
    task = TextGeneration(byte_tokenizer(), recorder, defaults, max_model_len=100, vocabulary=300)  # type: ignore[arg-type]
    ask(task, "ten chars.", **parameters)
    return recorder.params[0]


CHAT = GenerationConfig(
    do_sample=True, temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1, max_new_tokens=30
)
PLAIN = GenerationConfig()


def test_what_a_request_does_not_say_comes_from_the_models_config() -> None:
    result = sampling_params(CHAT)
    assert (result.temperature, result.top_p, result.top_k) == (0.6, 0.9, 20)
    assert (result.repetition_penalty, result.max_new_tokens) == (1.1, 30)


def test_temperature_0_is_greedy_whatever_the_models_config_says() -> None:
    assert sampling_params(CHAT, temperature=0.0).temperature == 0


def test_a_plain_model_is_greedy_without_any_limit_of_its_own() -> None:
    result = sampling_params(PLAIN)
    assert (result.temperature, result.top_p, result.top_k, result.repetition_penalty) == (
        0,
        1,
        0,
        1,
    )
    assert result.max_new_tokens == 64


def test_asking_for_top_p_or_top_k_alone_is_asking_to_sample() -> None:
    assert sampling_params(PLAIN, top_p=0.5).temperature == 1.0
    assert sampling_params(PLAIN, top_k=5).temperature == 1.0
    assert sampling_params(PLAIN, top_k=5, temperature=0.0).temperature == 0.0
    assert sampling_params(CHAT, top_p=0.5).temperature == 0.6


def test_default_new_tokens_come_from_config_then_max_length_and_keep_to_the_context() -> None:
    assert sampling_params(CHAT, max_length=50).max_new_tokens == 30
    assert sampling_params(PLAIN, max_length=50).max_new_tokens == 50
    assert sampling_params(PLAIN, max_length=500).max_new_tokens == 90  # 100 less the prompt's ten


def test_an_empty_prompt_begins_with_the_first_token_of_a_text(demo: Up) -> None:
    assert ask(demo.task, "", max_new_tokens=5).prompt_tokens == 1


def test_an_empty_prompt_for_a_model_without_such_a_token_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    task = TextGeneration(tokenizer, Recorder(), Defaults(), max_model_len=100, vocabulary=300)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="empty"):
        ask(task, "")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer as SentencePiece makes them: decoding drops a leading space."""
    words = ["<s>", "\u2581hello", "\u2581foo", "\u2581bar"]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


class Parrot:
    """Stands in for the engine: says ` foo bar bar...` until it is stopped."""

    def new_request(self) -> int:
        return 0

    def submit(
        self,
        prompt: Any,
        sampling: SamplingParams,
        listener: SequenceCallback,
        *,
        request: int,
        scope: bytes,
        is_bulk: bool,
    ) -> int:
        stops = (listener.on_token(Token(3 if n else 2)) for n in range(sampling.max_new_tokens))
        listener.on_finish("stop_sequence" if any(stops) else "length")
        return 0


@pytest.mark.parametrize(("stop", "text", "count"), [(" foo", "", 1), ("o bar", " fo", 2)])
def test_a_stop_that_begins_with_a_space_is_seen_as_the_first_token(
    stop: str, text: str, count: int
) -> None:
    tokenizer = word_tokenizer()
    task = TextGeneration(tokenizer, Parrot(), Defaults(), max_model_len=100, vocabulary=300)  # type: ignore[arg-type]
    hello = array("i", [1])
    result = ask(task, hello, max_new_tokens=5, stop=(stop,))
    assert (result.text, result.completion_tokens, result.finish_reason) == (text, count, "stop")


def test_a_protocols_default_length_is_cut_to_the_room_and_never_refused(demo: Up) -> None:
    words = "word " * 100
    room = 256 - len(AutoTokenizer.from_pretrained(DEMO)(words).input_ids)
    assert ask(demo.task, words, default_new_tokens=7).completion_tokens <= 7
    (job,) = demo.task.prepare(
        GenerationRequest((Prompt(words, GenerationParameters(default_new_tokens=10_000)),))
    ).jobs
    assert job.sampling.max_new_tokens == room


def test_many_replies_to_one_prompt_share_its_tokens(demo: Up) -> None:
    prompt = Prompt("the same", GenerationParameters())
    jobs = demo.task.prepare(GenerationRequest((prompt,) * 50)).jobs
    assert len({id(job.ids) for job in jobs}) == 1


@pytest.mark.parametrize("ids", [[2, -1], [2, 4096]])
def test_token_ids_outside_of_the_vocabulary_are_refused(demo: Up, ids: list[int]) -> None:
    with pytest.raises(RequestError, match="A token id is not between 0 and 2047"):
        ask(demo.task, array("i", ids))


def test_a_prompt_is_refused_by_its_length_before_it_is_tokenised(
    demo: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokenized(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was tokenised")

    monkeypatch.setattr(demo.task, "tokenizer", tokenized)
    sentence = "^A prompt of 1048576 characters has more than 256 tokens; with a reply of at least"
    with pytest.raises(PromptTooLong, match=sentence):
        ask(demo.task, "a" * 2**20)


@pytest.mark.parametrize("added", [True, False])
def test_a_prompt_has_special_tokens_unless_it_asks_for_none(demo: Up, added: bool) -> None:
    task = TextGeneration(
        beginning_tokenizer(),
        demo.task.engine,
        Defaults(),
        max_model_len=256,
        vocabulary=2048,
    )
    prompts = [Prompt("a", GenerationParameters(add_special_tokens=each)) for each in (added, True)]
    counts = [one.prompt_tokens for one in run(task, *prompts)]
    assert counts == [1 + added, 2]


def beginning_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that begins each text with a token."""
    tokenizer = byte_tokenizer()
    bos = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    return tokenizer


def test_ignore_eos_goes_on_to_the_last_token(demo: Up) -> None:
    result = ask(demo.task, README_PROMPT, max_new_tokens=200, ignore_eos=True)
    assert (result.finish_reason, result.completion_tokens) == ("length", 200)


def test_min_new_tokens_delays_the_end(demo: Up) -> None:
    count = ask(demo.task, README_PROMPT, max_new_tokens=200).completion_tokens
    more = ask(demo.task, README_PROMPT, max_new_tokens=200, min_new_tokens=count + 3)
    assert more.completion_tokens >= count + 3
    with pytest.raises(RequestError, match="more than the 5"):
        ask(demo.task, README_PROMPT, max_new_tokens=5, min_new_tokens=6)


@pytest.mark.parametrize("by_token", [False, True])
def test_a_stop_token_ends_the_reply_and_is_no_part_of_it(demo: Up, by_token: bool) -> None:
    whole = ask(demo.task, README_PROMPT, max_new_tokens=20, logprobs=0)
    token = whole.tokens[6].id
    first = [each.id for each in whole.tokens].index(token)
    stop = "never in it" if by_token else ()  # texts are made token by token then
    stops = (stop,) if stop else ()
    result = ask(demo.task, README_PROMPT, max_new_tokens=20, stop_token_ids=(token,), stop=stops)
    assert result.finish_reason == "stop"
    assert result.completion_tokens == first + 1
    assert result.text == "".join(each.text for each in whole.tokens[:first])


def test_only_allowed_tokens_are_generated(demo: Up) -> None:
    allowed = (50, 60, 70)
    for temperature in (0, 1):
        result = ask(
            *(demo.task, README_PROMPT),
            max_new_tokens=9,
            logprobs=0,
            allowed_token_ids=allowed,
            temperature=temperature,
        )
        assert {each.id for each in result.tokens} <= set(allowed)
        assert result.completion_tokens == 9
    end = demo.task.tokenizer.eos_token_id
    with pytest.raises(RequestError, match="None of allowed_token_ids"):
        ask(demo.task, README_PROMPT, allowed_token_ids=(end,), min_new_tokens=2)


def test_a_request_without_a_choice_leaves_its_neighbours_draws_alone(demo: Up) -> None:
    engine, ids = demo.task.engine, demo.task.tokenizer(README_PROMPT).input_ids
    seeded: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    alone = demo.tokens(ids, **seeded)
    bad = SamplingParams(12, allowed_tokens=(50,), bad_words=((50,),))
    pairs = [(SamplingParams(**seeded), Collected()), (bad, Collected())]
    for params, collected in pairs:
        engine.submit(ids, params, collected)
    assert pairs[0][1].wait().tokens == alone
    with pytest.raises(GenerationFailed, match="allowed_token_ids"):
        pairs[1][1].wait()


def test_too_many_bad_words_are_refused(demo: Up) -> None:
    with pytest.raises(RequestError, match="more than 1024 tokens"):
        ask(demo.task, README_PROMPT, bad_words=("several words " * 40,) * 9 + ("x " * 500,))


def test_bad_words_are_not_generated_as_by_transformers(demo: Up) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype="auto").eval()
    whole = ask(demo.task, README_PROMPT, max_new_tokens=20).text
    words = whole.split()[1:6:2]
    spelled = [[word, f" {word}"] for word in words]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for each in spelled for text in each]
    inputs = tokenizer(README_PROMPT, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=20, do_sample=False, bad_words_ids=ids)
    expected = tokenizer.decode(tokens[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    result = ask(demo.task, README_PROMPT, max_new_tokens=20, bad_words=tuple(words))
    assert result.text == expected != whole


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids"])
def test_tokens_beyond_the_vocabulary_are_refused(demo: Up, name: str) -> None:
    with pytest.raises(RequestError, match=f"{name} names a token id above"):
        ask(demo.task, README_PROMPT, **{name: (10**6,)})


def test_a_prompt_keeps_its_beginning_or_its_end(demo: Up) -> None:
    beginning = ask(demo.task, README_PROMPT, max_new_tokens=4, prompt_limit=5)
    end = ask(demo.task, README_PROMPT, max_new_tokens=4, prompt_limit=5, keeps_prompt_end=True)
    ids = array("i", AutoTokenizer.from_pretrained(DEMO)(README_PROMPT).input_ids)
    assert len(ids) > 5
    assert beginning.text == ask(demo.task, ids[:5], max_new_tokens=4).text
    assert end.text == ask(demo.task, ids[-5:], max_new_tokens=4).text
    assert (beginning.prompt_tokens, end.prompt_tokens) == (5, 5)
    whole = ask(demo.task, README_PROMPT, prompt_limit=1000, keeps_prompt_end=True)
    assert whole.prompt_tokens == len(ids)


def test_a_stop_that_is_a_special_token_ends_the_reply(demo: Up) -> None:
    special = special_tokens(demo.task.tokenizer, 4096)
    assert special["</s>"] == demo.task.tokenizer.eos_token_id
    prompt = Prompt("a", GenerationParameters(stop=("<pad>", "x")))
    stopped, stops = with_special_stops(prompt, special)
    assert stops == {special["<pad>"]: "<pad>"}
    assert stopped.parameters.stop_token_ids == (special["<pad>"],)
    assert stopped.parameters.stop == ("<pad>", "x")
    bias = {special["<pad>"]: 100.0}
    reply = ask(demo.task, README_PROMPT, max_new_tokens=5, stop=("<pad>",), logit_bias=bias)
    assert (reply.text, reply.finish_reason, reply.completion_tokens) == ("", "stop", 1)
    assert (reply.ending, reply.stop) == ("stop_sequence", "<pad>")
    cut = ask(demo.task, README_PROMPT, max_new_tokens=2, stop=("<pad>",))
    assert (cut.ending, cut.stop) == ("length", "")


def test_a_stop_that_contains_special_tokens_ends_the_reply_whole_and_streamed(demo: Up) -> None:
    special = special_tokens(demo.task.tokenizer, 4096)
    bias = {special["<pad>"]: 100.0}
    parameters = GenerationParameters(max_new_tokens=5, stop=("<pad>" * 3,), logit_bias=bias)
    (reply,) = run(demo.task, Prompt(README_PROMPT, parameters))
    assert (reply.text, reply.completion_tokens) == ("", 3)
    assert (reply.ending, reply.stop) == ("stop_sequence", "<pad>" * 3)

    async def streamed() -> list[Any]:
        request = GenerationRequest((Prompt(README_PROMPT, parameters),))
        return [piece async for piece in demo.task.prepare(request).stream()]

    last = asyncio.run(streamed())[-1]
    assert (last.text, last.completion_tokens, last.ending) == ("", 3, "stop_sequence")


def test_a_special_stop_beyond_the_models_vocabulary_is_harmless(demo: Up) -> None:
    tokenizer = demo.task.tokenizer
    vocabulary = tokenizer.convert_tokens_to_ids("<pad>")  # as if the model had no more
    special = special_tokens(tokenizer, vocabulary)
    assert "</s>" not in special or special["</s>"] < vocabulary
    prompt = Prompt("a", GenerationParameters(stop=("<pad>",)))
    assert with_special_stops(prompt, special) == (prompt, {})


def test_an_added_special_token_is_one_of_the_special_tokens() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=True), AddedToken("<plain>")])
    special = special_tokens(tokenizer, len(tokenizer))
    assert special["<|im_end|>"] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert "<plain>" not in special
