"""LlamaIndex's client for servers like OpenAI's."""

import json
import sys
from typing import Literal

sys.path.pop(0)  # this folder, in which the package would be this file

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, ConfigDict

url, key = sys.argv[1:]
PROMPT = "It was raining in"


class Weather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Rome", "Oslo"]
    warm: bool


def model(**options: object) -> OpenAILike:
    return OpenAILike(
        model="demo",
        api_base=f"{url}/v1",
        api_key=key,
        temperature=0,
        context_window=256,
        max_retries=0,
        **options,
    )


chat = model(is_chat_model=True, is_function_calling_model=True, max_tokens=60)
text = model(is_chat_model=False, max_tokens=6)
message = ChatMessage(role="user", content=PROMPT)
print(
    json.dumps(
        {
            "chat": chat.chat([message]).message.content,
            "stream": "".join(part.delta or "" for part in chat.stream_chat([message])),
            "completion": text.complete(PROMPT).text,
            "structured": chat.as_structured_llm(Weather).complete(PROMPT).raw.model_dump(),
        }
    )
)
