// The live figures: gauges as they are, and rates over the last seconds of counters.

import { bytes, percent, rate, seconds } from "./format.js";

const WINDOW = 10; // seconds over which rates are taken

const samples = [];
let firstToken = null; // the mean of the latest ones; it stays while there are none

export function showFigures(list, figures, isGenerating) {
  if (samples.length && figures.seconds < samples.at(-1).seconds) samples.length = 0; // a restart
  samples.push(figures);
  while (samples.length > 2 && figures.seconds - samples[0].seconds > WINDOW) samples.shift();
  const rows = isGenerating ? generation(figures) : encoding(figures);
  list.replaceChildren(...[...rows, ...streaming(figures)].flatMap(([name, value]) => [
    Object.assign(document.createElement("dt"), { textContent: name }),
    Object.assign(document.createElement("dd"), { textContent: value }),
  ]).reduce(inPairs, []));
}

// A `dt` and its `dd` in one `div`, which the grid places as one.
function inPairs(groups, element, index) {
  if (index % 2 === 0) groups.push(document.createElement("div"));
  groups.at(-1).append(element);
  return groups;
}

function since(name) {
  return samples.at(-1)[name] - samples[0][name];
}

function elapsed() {
  return Math.max(since("seconds"), 1e-9);
}

function perSecond(name) {
  return samples.length > 1 ? since(name) / elapsed() : 0;
}

function generation(figures) {
  if (since("first_tokens") > 0) firstToken = since("first_token_seconds") / since("first_tokens");
  else if (firstToken === null && figures.first_tokens) firstToken = figures.first_token_seconds / figures.first_tokens;
  return [
    ["tokens/s", rate(perSecond("generated_tokens"))],
    ["time to first token", firstToken === null ? "–" : seconds(firstToken)],
    ["running", figures.running],
    ["waiting", figures.waiting],
    ["KV cache used", figures.kv_limit ? percent(figures.kv_used / figures.kv_limit) : "–"],
  ];
}

function encoding(figures) {
  return [
    ["requests/s", rate(perSecond("requests"))],
    ["running", figures.running],
    ["waiting", figures.waiting],
  ];
}

function streaming(figures) {
  const rows = [];
  if (figures.read_bytes) rows.push(["read from disk", `${bytes(perSecond("read_bytes"))}/s`]);
  if (figures.copied_bytes) rows.push(["copied to GPU", `${bytes(perSecond("copied_bytes"))}/s`]);
  if (figures.read_bytes || figures.copied_bytes) {
    const busy = since("pass_seconds");
    rows.push(["waits for weights", busy > 0 ? percent(Math.min(1, since("stall_seconds") / busy)) : "–"]);
  }
  if (figures.expert_hits + figures.expert_misses) {
    const uses = since("expert_hits") + since("expert_misses");
    rows.push(["experts in memory", uses ? percent(since("expert_hits") / uses) : "–"]);
  }
  return rows;
}
