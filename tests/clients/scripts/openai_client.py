"""openai-python in a version with a major below the server's tests': `parse`, streams, errors."""

import json
import sys
from typing import Literal

import openai
from pydantic import BaseModel

url, key = sys.argv[1:]
PROMPT = "It was raining in"


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Rome", "Oslo"]
    warm: bool


client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
chat = {
    "model": "demo",
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": 60,
    "temperature": 0,
}
tool = openai.pydantic_function_tool(Weather)
calls = client.chat.completions.parse(tools=[tool], tool_choice="required", **chat)
with client.chat.completions.stream(response_format=Weather, **chat) as stream:
    streamed = stream.get_final_completion().choices[0].message.parsed


def refused(wrong_key: str) -> str:
    try:
        client.with_options(api_key=wrong_key).chat.completions.create(**chat)
    except openai.AuthenticationError as error:
        return error.code
    return ""


print(
    json.dumps(
        {
            "chat": client.chat.completions.create(**chat).choices[0].message.content,
            "parsed": client.chat.completions.parse(response_format=Weather, **chat)
            .choices[0]
            .message.parsed.model_dump(),
            "streamed": streamed.model_dump(),
            "calls": [
                each.function.parsed_arguments.model_dump()
                for each in calls.choices[0].message.tool_calls
            ],
            "refused": refused("sk-wrong"),
            "models": [model.id for model in client.models.list()],
        }
    )
)
