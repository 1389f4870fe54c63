"""The task that a model is served for, from its files."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig

from predictor.checkpoint.task_detection import factory_of, find_task
from predictor.errors import CheckpointError
from predictor.settings import Settings


def task_of(folder: Path, architecture: str, requested: str | None = None, **config: object) -> str:
    kind = {"GPT2": "gpt2", "DebertaV2": "deberta-v2", "XLMRoberta": "xlm-roberta"}
    name = architecture.partition("For")[0].removesuffix("LMHeadModel").removesuffix("Model")
    about = AutoConfig.for_model(kind.get(name, name.lower()), architectures=[architecture])
    for key, value in config.items():
        setattr(about, key, value)
    return find_task(about, folder, requested)


HEADLESS_WRAPPERS = {
    "llava": "LlavaModel",
    "aria": "AriaModel",
    "glm4v": "Glm4vModel",
    "idefics2": "Idefics2Model",
    "internvl": "InternVLModel",
}


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("LlamaForCausalLM", "text_generation"),
        ("GPT2LMHeadModel", "text_generation"),
        ("BloomModel", "text_generation"),  # so the hub has the larger BLOOMs
        ("T5ForConditionalGeneration", "text2text_generation"),
        ("BartForConditionalGeneration", "text2text_generation"),
        ("BartModel", "text2text_generation"),
        ("BertForSequenceClassification", "sequence_classification"),
        ("LlamaForSequenceClassification", "sequence_classification"),
        ("DebertaV2ForTokenClassification", "token_classification"),
        ("DistilBertForQuestionAnswering", "question_answering"),
        ("ModernBertForMaskedLM", "fill_mask"),
        ("RobertaModel", "text_embedding"),
        ("XLMRobertaModel", "text_embedding"),
    ],
)
def test_a_task_is_found_by_the_architecture(
    tmp_path: Path, architecture: str, expected: str
) -> None:
    assert task_of(tmp_path, architecture) == expected


@pytest.mark.parametrize(
    ("model_type", "architecture", "expected"),
    [
        ("llama4", "Llama4ForConditionalGeneration", "text_generation"),
        ("qwen2_vl", "Qwen2VLForConditionalGeneration", "text_generation"),
        ("t5gemma2", "T5Gemma2ForConditionalGeneration", "text2text_generation"),
        ("llama", "MyLlamaForCausalLM", "text_generation"),
        ("llama", "MyLlamaForSequenceClassification", "sequence_classification"),
        ("gpt2", "MyGPT2ForCausalLM", "text_generation"),
        ("llava", "MyVisionForConditionalGeneration", "text_generation"),
        ("t5", "MyForConditionalGeneration", "text2text_generation"),
        ("bert", "MyForMaskedLM", "fill_mask"),
        ("llama", "SomethingElse", "text_generation"),
        ("mistral", "MyForSomething", "text_generation"),
        *[
            (model_type, architecture, "text_embedding")
            for model_type, architecture in HEADLESS_WRAPPERS.items()
        ],
    ],
)
def test_a_wrapper_and_a_class_of_another_name_have_the_task_of_their_head(
    tmp_path: Path, model_type: str, architecture: str, expected: str
) -> None:
    config = AutoConfig.for_model(model_type, architectures=[architecture])
    assert find_task(config, tmp_path, None) == expected
    assert find_task(config, tmp_path, expected) == expected


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "BartModel", "ModernBertForMaskedLM"])
def test_pooling_refuses_a_model_that_generates_or_fills_masks(
    tmp_path: Path, architecture: str
) -> None:
    sentence = f"^{tmp_path} describes a model for .*; --task text_embedding serves the vectors"
    with pytest.raises(CheckpointError, match=sentence):
        task_of(tmp_path, architecture, "pooling")


@pytest.mark.parametrize("architecture", ["RobertaModel", "LlamaForSequenceClassification"])
def test_pooling_is_the_detected_task(tmp_path: Path, architecture: str) -> None:
    assert task_of(tmp_path, architecture, "pooling") == task_of(tmp_path, architecture)


def test_one_label_is_how_well_two_texts_match(tmp_path: Path) -> None:
    assert task_of(tmp_path, "BertForSequenceClassification", num_labels=1) == "rerank"


def test_the_layout_of_sentence_transformers_makes_embeddings_of_any_model(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")
    assert task_of(tmp_path, "BertForMaskedLM") == "text_embedding"
    assert task_of(tmp_path, "LlamaForCausalLM") == "text_embedding"


def test_the_requested_task_is_served_if_it_suits_the_head(tmp_path: Path) -> None:
    bert = "BertForSequenceClassification"
    assert task_of(tmp_path, bert, "rerank") == "rerank"
    assert task_of(tmp_path, bert, "text_embedding") == "text_embedding"
    assert task_of(tmp_path, "RobertaModel", "fill_mask") == "fill_mask"


def test_a_head_for_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"BertForMaskedLM.*no token classifier"):
        task_of(tmp_path, "BertForMaskedLM", "token_classification")


def test_a_model_for_no_task_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"BertForNextSentencePrediction.*no task"):
        task_of(tmp_path, "BertForNextSentencePrediction")


def test_a_models_own_code_says_what_it_is_for(tmp_path: Path) -> None:
    code = {"AutoModelForTokenClassification": "modeling.Own"}
    assert task_of(tmp_path, "BertForOwn", auto_map=code) == "token_classification"


def test_every_task_of_the_settings_has_a_class() -> None:
    config = AutoConfig.for_model("bert")
    schema = Settings.model_json_schema()["properties"]["task"]
    tasks = {*schema["anyOf"][0]["enum"]} - {"pooling"}  # which is detected
    assert len({factory_of(task, config).__name__ for task in tasks}) == len(tasks) - 1


@pytest.mark.parametrize("requested", [None, "fill_mask"])
def test_a_refusal_names_the_setting_that_serves_the_vectors(
    tmp_path: Path, requested: str | None
) -> None:
    with pytest.raises(CheckpointError, match="--task text_embedding"):
        task_of(tmp_path, "BertForNextSentencePrediction", requested=requested)
