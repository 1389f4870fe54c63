"""instructor, in its modes that rest on tools and on schemas."""

import json
import sys
from typing import Literal

sys.path.pop(0)  # this folder, in which the package would be this file

import instructor
import openai
from pydantic import BaseModel, ConfigDict

url, key = sys.argv[1:]
MESSAGES = [{"role": "user", "content": "It was raining in"}]


class Weather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Rome", "Oslo"]
    warm: bool


def client(mode: instructor.Mode) -> instructor.Instructor:
    inner = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    return instructor.from_openai(inner, mode=mode)


def ask(mode: instructor.Mode) -> dict[str, object]:
    create = client(mode).chat.completions.create
    given = {"max_tokens": 60, "max_retries": 0, "temperature": 0}
    return create(model="demo", response_model=Weather, messages=MESSAGES, **given).model_dump()


def partial() -> list[dict[str, object]]:
    create = client(instructor.Mode.JSON_SCHEMA).chat.completions.create_partial
    given = {"max_tokens": 60, "temperature": 0}
    parts = create(model="demo", response_model=Weather, messages=MESSAGES, **given)
    return [part.model_dump() for part in parts]


modes = (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA)
print(json.dumps({"whole": {mode.name: ask(mode) for mode in modes}, "partial": partial()}))
