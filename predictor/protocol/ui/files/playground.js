// The playground: one form for every kind of request, and the reply as it comes.

import { call, callJSON, events } from "./api.js";
import { rate, seconds } from "./format.js";
import { modesOf } from "./modes.js";
import { curl, python } from "./snippets.js";

const element = (id) => document.getElementById(id);

export class Playground {
  constructor(state, needsKey) {
    this.needsKey = needsKey;
    this.task = state.task;
    this.modes = modesOf(state);
    this.turns = [];
    this.running = null;
    element("modes").append(...this.modes.map((mode, index) => this.#choice(mode, index)));
    element("modes").hidden = this.modes.length === 1;
    element("request").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    element("request").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        element("request").requestSubmit();
      }
    });
    element("stop").addEventListener("click", () => this.running?.abort());
    element("clear").addEventListener("click", () => this.#forget());
    this.#choose(this.modes[0]);
  }

  #choice(mode, index) {
    const label = document.createElement("label");
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "mode", checked: index === 0 });
    radio.addEventListener("change", () => this.#choose(mode));
    label.append(radio, ` ${mode.name}`);
    return label;
  }

  #choose(mode) {
    this.running?.abort();
    this.mode = mode;
    element("inputs").replaceChildren(...mode.inputs.map(input));
    element("parameters").hidden = !mode.hasParameters;
    element("clear").hidden = element("turns").hidden = !mode.isChat;
    element("reply").hidden = element("snippets").hidden = true;
    element("request-error").textContent = element("reply-note").textContent = "";
    this.#forget();
  }

  #forget() {
    this.turns = [];
    element("turns").replaceChildren();
  }

  #values() {
    const fields = element("inputs").querySelectorAll("textarea");
    return Object.fromEntries([...fields].map((field) => [field.name, field.value]));
  }

  #parameters() {
    if (!this.mode.hasParameters) return undefined;
    return {
      max_tokens: element("max-tokens").valueAsNumber,
      temperature: element("temperature").valueAsNumber,
    };
  }

  async #send() {
    if (this.running) return;
    const { mode } = this;
    const values = this.#values();
    const body = mode.body(values, this.#parameters(), this.turns);
    element("curl").textContent = curl(mode.path, body, this.needsKey);
    element("python").textContent = python(mode.path, body, this.needsKey);
    element("snippets").hidden = false;
    element("request-error").textContent = element("reply-note").textContent = "";
    this.#busy(new AbortController());
    try {
      await (mode.isStreamed ? this.#stream(mode, body, values) : this.#ask(mode, body));
    } catch (error) {
      if (error.name !== "AbortError") element("request-error").textContent = error.message;
    } finally {
      this.#busy(null);
    }
  }

  #busy(running) {
    this.running = running;
    element("send").disabled = Boolean(running);
    element("stop").disabled = !running;
    element("reply").setAttribute("aria-busy", String(Boolean(running)));
  }

  async #ask(mode, body) {
    const began = performance.now();
    const answer = await callJSON(mode.path, body, this.running.signal);
    element("reply").replaceChildren(mode.show(answer, body));
    element("reply").hidden = false;
    element("reply-note").textContent = `answered in ${seconds((performance.now() - began) / 1000)}`;
  }

  async #stream(mode, body, values) {
    const shown = this.#openReply(mode, values);
    const began = performance.now();
    let first = null, pieces = 0;
    try {
      const response = await call(mode.path, body, this.running.signal);
      for await (const event of events(response)) {
        const piece = mode.piece(event);
        if (!piece) continue;
        first ??= performance.now();
        pieces += 1;
        shown.append(piece);
        element("turns").scrollTop = element("turns").scrollHeight;
      }
    } finally {
      element("reply-note").textContent = summary(began, first, pieces);
      if (mode.isChat && shown.textContent) {
        this.turns.push({ role: "user", content: values.message }, { role: "assistant", content: shown.textContent });
      }
    }
    if (mode.isChat) element("inputs").querySelector("textarea").value = "";
  }

  // Returns the element that the reply is appended to.
  #openReply(mode, values) {
    if (mode.isChat) {
      const [question, reply] = [turn("user", "You"), turn("assistant", "Model")];
      question.lastChild.textContent = values.message;
      element("turns").append(question, reply);
      return reply.lastChild;
    }
    const prompt = Object.assign(document.createElement("span"), { className: "prompt", textContent: mode.echo(values) });
    const text = document.createElement("span");
    element("reply").replaceChildren(prompt, text);
    element("reply").hidden = false;
    return text;
  }
}

function summary(began, first, pieces) {
  if (first === null) return "";
  const generating = (performance.now() - first) / 1000;
  const speed = pieces > 1 && generating > 0 ? `, then ${rate((pieces - 1) / generating)} pieces/s` : "";
  return `first piece after ${seconds((first - began) / 1000)}${speed}`;
}

function turn(role, name) {
  const line = document.createElement("div");
  line.className = `turn ${role}`;
  line.append(Object.assign(document.createElement("b"), { textContent: name }), document.createElement("span"));
  return line;
}

function input({ name, label, example }) {
  const whole = document.createElement("label");
  const area = Object.assign(document.createElement("textarea"), { name, value: example, required: true, rows: 3 });
  whole.append(label, area);
  return whole;
}
