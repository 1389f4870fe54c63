"""LangChain's chat model, with tools and with structured output in its three methods."""

import json
import sys
from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict

url, key = sys.argv[1:]
options = {"base_url": f"{url}/v1", "api_key": key, "model": "demo", "max_retries": 0}
PROMPT = "It was raining in"


class Weather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Rome", "Oslo"]
    warm: bool


class Anything(BaseModel):
    """An object whose keys may all be left out, since JSON mode has no schema."""

    city: str = ""


@tool
def get_weather(city: Literal["Rome", "Oslo"]) -> str:
    """Say the weather of a city."""
    return city


chat = ChatOpenAI(temperature=0, max_tokens=60, **options)
text = OpenAI(temperature=0, max_tokens=6, **options)
forced = chat.bind_tools([get_weather], tool_choice="required", strict=True)
call = forced.invoke(PROMPT)
pieces = [piece for chunk in forced.stream(PROMPT) for piece in chunk.tool_call_chunks]
history = [
    HumanMessage(PROMPT),
    call,
    *(ToolMessage("sunny", tool_call_id=each["id"]) for each in call.tool_calls),
]
structured = {
    method: chat.with_structured_output(Weather, method=method).invoke(PROMPT).model_dump()
    for method in ("function_calling", "json_schema")
}
in_json = chat.with_structured_output(Anything, method="json_mode").invoke(f"JSON. {PROMPT}")
print(
    json.dumps(
        {
            "chat": chat.invoke(PROMPT).content,
            "stream": "".join(chunk.content for chunk in chat.stream(PROMPT)),
            "completion": text.invoke(PROMPT),
            "calls": [[each["name"], each["args"]] for each in call.tool_calls],
            "streamed": "".join(piece["args"] or "" for piece in pieces),
            "after_call": chat.bind_tools([get_weather]).invoke(history).content,
            "structured": structured,
            "json_mode": isinstance(in_json, Anything),
        }
    )
)
