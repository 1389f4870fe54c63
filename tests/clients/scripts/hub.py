"""huggingface_hub's client: Text Generation Inference's routes and chats."""

import asyncio
import json
import sys

from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import ValidationError

url, key = sys.argv[1:]
PROMPT = "It was raining in"
MESSAGES = [{"role": "user", "content": PROMPT}]
SCHEMA = {
    "type": "object",
    "properties": {"warm": {"type": "boolean"}},
    "required": ["warm"],
    "additionalProperties": False,
}
client = InferenceClient(url, api_key=key)


def refusal() -> str:
    try:
        client.text_generation(PROMPT, best_of=2)
    except ValidationError as error:
        return str(error)
    return ""


async def asynchronous() -> str:
    async with AsyncInferenceClient(url, api_key=key) as one:
        return await one.text_generation(PROMPT, max_new_tokens=6)


best = client.text_generation(PROMPT, max_new_tokens=6, best_of=2, do_sample=True, details=True)
details = client.text_generation(PROMPT, max_new_tokens=200, details=True, top_n_tokens=2).details
events = list(client.text_generation(PROMPT, max_new_tokens=200, stream=True, details=True))
grammar = {"type": "json", "value": SCHEMA}
print(
    json.dumps(
        {
            "text": client.text_generation(PROMPT, max_new_tokens=6),
            "async": asyncio.run(asynchronous()),
            "stop": client.text_generation(PROMPT, max_new_tokens=60, stop=[" stayed"]),
            "full": client.text_generation(PROMPT, max_new_tokens=6, return_full_text=True),
            "sampled": [
                client.text_generation(PROMPT, max_new_tokens=9, temperature=3.0, seed=seed)
                for seed in (1, 1, 2)
            ],
            "grammar": client.text_generation(PROMPT, max_new_tokens=30, grammar=grammar),
            "details": [details.finish_reason, details.generated_tokens, len(details.top_tokens)],
            "events": [len(events), "".join(event.token.text for event in events[:-1])],
            "last": [events[-1].generated_text, events[-1].details.finish_reason],
            "best": [best.generated_text, len(best.details.best_of_sequences)],
            "refusal": refusal(),
            "chat": client.chat_completion(MESSAGES, max_tokens=6).choices[0].message.content,
            "chat_stream": "".join(
                chunk.choices[0].delta.content or ""
                for chunk in client.chat_completion(MESSAGES, max_tokens=6, stream=True)
            ),
        }
    )
)
