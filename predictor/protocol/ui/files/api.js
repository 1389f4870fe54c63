// Calls of the server. The API key is kept here, in memory, and nowhere else.

let key = "";

export function setKey(value) {
  key = value;
}

export function hasKey() {
  return key !== "";
}

// Fails with one sentence; `status` is that of HTTP, or 0 if there was no answer.
export class CallError extends Error {
  constructor(sentence, status) {
    super(sentence);
    this.status = status;
  }
}

export async function call(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError("The server does not answer.", 0);
  }
  if (!response.ok) throw new CallError(await sentenceOf(response), response.status);
  return response;
}

export async function callJSON(path, body, signal) {
  return (await call(path, body, signal)).json();
}

async function sentenceOf(response) {
  try {
    const { error } = await response.json();
    return typeof error === "string" ? error : error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

// Yields the JSON documents of server-sent events, until `[DONE]`.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const event = JSON.parse(data);
      if (event.error) throw new CallError(event.error.message ?? String(event.error), 200);
      yield event;
    }
  }
}
