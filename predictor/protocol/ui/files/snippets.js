// A request as a line of curl and as a program in Python. The API key is a variable in both.

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curl(path, body, needsKey) {
  const key = needsKey ? ' -H "Authorization: Bearer $API_KEY"' : "";
  const stream = body.stream ? " --no-buffer" : "";
  return `curl${stream} ${url(path)}${key} -H 'Content-Type: application/json' -d ${shell(JSON.stringify(body))}`;
}

export function python(path, body, needsKey) {
  const kind = OPENAI[path];
  return kind ? openai(kind, body, needsKey) : requests(path, body, needsKey);
}

const OPENAI = {
  "v1/completions": ["completions", "choice.text"],
  "v1/chat/completions": ["chat.completions", 'choice.delta.content or ""'],
  "v1/embeddings": ["embeddings", null],
};

function openai([resource, piece], body, needsKey) {
  const values = Object.entries(body).map(([name, value]) => `    ${name}=${literal(value)},\n`).join("");
  const opened = [
    ...(needsKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(url("v1"))}, api_key=${needsKey ? 'os.environ["API_KEY"]' : '"none"'})`,
  ];
  const created = `client.${resource}.create(\n${values})`;
  const printed = body.stream
    ? [`for event in ${created}:`, "    for choice in event.choices:", `        print(${piece}, end="", flush=True)`]
    : [`print(${created})`];
  return [...opened, ...printed].join("\n");
}

function requests(path, body, needsKey) {
  const headers = needsKey ? ', headers={"Authorization": "Bearer " + os.environ["API_KEY"]}' : "";
  return [
    ...(needsKey ? ["import os", ""] : []),
    "import requests",
    "",
    `response = requests.post(${literal(url(path))}, json=${literal(body)}${headers})`,
    "print(response.json())",
  ].join("\n");
}

function url(path) {
  return new URL(path, document.baseURI).href;
}

function literal(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, each]) => `${literal(name)}: ${literal(each)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}
