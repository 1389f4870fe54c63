"""LiteLLM, by the names that it has for OpenAI's API, for vLLM and for Hugging Face's."""

import json
import sys

sys.path.pop(0)  # this folder, in which the package would be this file

import litellm

url, key = sys.argv[1:]
PROMPT = "It was raining in"
MESSAGES = [{"role": "user", "content": PROMPT}]
SCHEMA = {
    "type": "object",
    "properties": {"warm": {"type": "boolean"}},
    "required": ["warm"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "tell", "parameters": SCHEMA}}


def ask(provider: str = "openai", **more: object) -> object:
    given = {"temperature": 0, "max_tokens": 60, "num_retries": 0, **more}
    return litellm.completion(
        model=f"{provider}/demo", messages=MESSAGES, api_base=f"{url}/v1", api_key=key, **given
    )


def refusal() -> str:
    try:
        ask(max_tokens=100_000)
    except litellm.BadRequestError as error:
        return str(error)
    return ""


def text() -> str:
    answer = litellm.text_completion(
        model="text-completion-openai/demo",
        prompt=PROMPT,
        api_base=f"{url}/v1",
        api_key=key,
        max_tokens=6,
        temperature=0,
    )
    return answer.choices[0].text


chunks = list(ask(stream=True, stream_options={"include_usage": True}))
called = ask(tools=[TOOL], tool_choice="required").choices[0].message.tool_calls
print(
    json.dumps(
        {
            "chat": {
                name: ask(name).choices[0].message.content
                for name in ("openai", "hosted_vllm", "huggingface")
            },
            "stream": "".join(
                chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices
            ),
            "usage": chunks[-1].usage.completion_tokens,
            "completion": text(),
            "calls": [[each.function.name, json.loads(each.function.arguments)] for each in called],
            "refusal": refusal(),
        }
    )
)
