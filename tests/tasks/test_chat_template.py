"""Chat templates of models that take images too: where they are, and what they take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from predictor.tasks.chat_template import takes_parts, template_messages
from predictor.tasks.loading import open_tokenizer
from predictor.tasks.request import Message
from tests.checkpoints import byte_tokenizer

STRINGS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
PARTS = (
    "{% for m in messages %}[{{ m['role'] }}]{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
BOTH = (
    "{% for m in messages %}[{{ m['role'] }}]{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}{% endfor %}"
)
JOINED = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] + '' }}{% endfor %}"
LEFT_OUT = "{% for m in messages %}[{{ m['role'] }}]{% endfor %}"


@pytest.mark.parametrize(
    ("template", "in_parts"),
    [(STRINGS, False), (BOTH, False), (JOINED, False), (PARTS, True), (LEFT_OUT, False)],
)
def test_content_has_the_form_that_shows_in_the_prompt(template: str, in_parts: bool) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    assert takes_parts(tokenizer) == in_parts
    messages = template_messages([Message("user", "Hello")], in_parts=in_parts)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == ("[user]" if template == LEFT_OUT else "[user]Hello")


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
def test_a_tokenizer_without_a_template_has_its_processors(tmp_path: Path, name: str) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / name).write_text(json.dumps({"chat_template": PARTS, "processor_class": "X"}))
    assert open_tokenizer(tmp_path, trust_remote_code=False).chat_template == PARTS


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"chat_template": 1}'])
def test_a_processors_file_without_a_template_is_passed_over(tmp_path: Path, content: str) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(content)
    assert open_tokenizer(tmp_path, trust_remote_code=False).chat_template is None


def test_the_tokenizers_own_template_is_preferred(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = STRINGS
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": PARTS}))
    assert open_tokenizer(tmp_path, trust_remote_code=False).chat_template == STRINGS
