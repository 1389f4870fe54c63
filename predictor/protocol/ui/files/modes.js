// What can be asked: for each kind its inputs, its request, and how an answer is shown.

import { percent } from "./format.js";

const REPLY = { isStreamed: true, hasParameters: true };

export function modesOf(state) {
  if (state.task === "text_generation") return [completion(state), chat(state), predict(state)];
  if (state.task === "text2text_generation") return [completion(state), predict(state)];
  if (state.task === "text_embedding") return [similarity(state), predict(state)];
  return [predict(state)];
}

function completion(state) {
  return {
    ...REPLY,
    name: "Completion",
    path: "v1/completions",
    inputs: [{ name: "prompt", label: "Prompt", example: state.fields[0].example }],
    body: ({ prompt }, parameters) => ({ model: state.model, prompt, ...parameters, stream: true }),
    piece: (event) => event.choices?.[0]?.text ?? "",
    echo: ({ prompt }) => prompt,
  };
}

function chat(state) {
  return {
    ...REPLY,
    name: "Chat",
    isChat: true,
    path: "v1/chat/completions",
    inputs: [{ name: "message", label: "Message", example: "What is the weather like today?" }],
    body: ({ message }, parameters, turns) => ({
      model: state.model,
      messages: [...turns, { role: "user", content: message }],
      ...parameters,
      stream: true,
    }),
    piece: (event) => event.choices?.[0]?.delta?.content ?? "",
  };
}

function similarity(state) {
  const example = "The weather is lovely today.\nIt is sunny outside.\nShe drove to the stadium.";
  return {
    name: "Similarity",
    path: "v1/embeddings",
    inputs: [{ name: "texts", label: "Texts, one a line", example }],
    body: ({ texts }) => ({ model: state.model, input: lines(texts) }),
    show: (answer, body) => similarities(body.input, answer.data.map((row) => row.embedding)),
  };
}

// Any task over V1, with its own inputs.
function predict(state) {
  return {
    name: "V1",
    path: `v1/models/${encodeURIComponent(state.model)}:predict`,
    hasParameters: state.task.endsWith("generation"),
    inputs: state.fields.filter((field) => field.required)
      .map(({ name, example }) => ({ name, label: name, example })),
    body: (values, parameters) => {
      const names = Object.keys(values);
      const instance = names.length === 1 ? values[names[0]] : values;
      const own = parameters && { max_new_tokens: parameters.max_tokens, temperature: parameters.temperature };
      return { instances: [instance], ...(own && { parameters: own }) };
    },
    show: (answer) => document.createTextNode(JSON.stringify(answer, null, 2)),
  };
}

function lines(text) {
  return text.split("\n").map((line) => line.trim()).filter(Boolean);
}

function cosine(a, b) {
  let dot = 0, first = 0, second = 0;
  a.forEach((value, index) => {
    dot += value * b[index];
    first += value * value;
    second += b[index] * b[index];
  });
  return dot / Math.sqrt(first * second || 1);
}

// A table of every text with every other.
function similarities(texts, vectors) {
  const table = document.createElement("table");
  table.append(Object.assign(document.createElement("caption"), { textContent: "Cosine similarity" }));
  const head = table.createTHead().insertRow();
  head.append(cell("th", ""), ...texts.map((_, index) => cell("th", String(index + 1))));
  texts.forEach((text, row) => {
    const line = table.createTBody().insertRow();
    line.append(cell("th", `${row + 1} ${text}`));
    line.append(...vectors.map((other) => cell("td", percent(cosine(vectors[row], other)))));
  });
  const scroll = document.createElement("div");
  scroll.className = "scroll";
  scroll.append(table);
  return scroll;
}

function cell(kind, text) {
  const element = document.createElement(kind);
  if (kind === "th") element.scope = text && !/^\d+$/.test(text) ? "row" : "col";
  element.textContent = text;
  return element;
}
