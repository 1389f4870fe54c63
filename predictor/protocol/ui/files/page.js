// The page: asks for the state every second, and shows the parts of which there is something.

import { CallError, call, callJSON, hasKey, setKey } from "./api.js";
import { showFigures } from "./figures.js";
import { bytes, seconds } from "./format.js";
import { showHeat } from "./heat.js";
import { Playground } from "./playground.js";

const SECOND = 1000;
const ROUNDS_BETWEEN_HEATS = 3;

const element = (id) => document.getElementById(id);
let playground = null;
let isPictured = false;
let rounds = 0;

async function poll() {
  if (!document.hidden) {
    try {
      await refresh();
    } catch (error) {
      report(error);
    }
  }
  setTimeout(poll, SECOND);
}

async function refresh() {
  const progress = await callJSON("ui/progress");
  const isLoading = progress.progress !== null; // a model may be ready before all weights are there
  showStatus(progress.ready ? "ready" : isLoading ? "loading" : "not ready: it drains or is stalled", progress.ready);
  showProgress(isLoading, progress.progress);
  const isOpen = !progress.needs_key || hasKey();
  element("key-form").hidden = isOpen;
  if (!isOpen) return;
  const state = await callJSON("ui/state");
  element("key-error").textContent = "";
  element("model").textContent = document.title = state.model;
  element("server").textContent = `accelerate-predictor ${state.server}`;
  if (state.is_placed && !isPictured) await showPicture();
  if (!progress.ready) return;
  if (playground && playground.task !== state.task) location.reload(); // another server at this address
  if (!playground) {
    playground = new Playground(state, progress.needs_key);
    element("playground").hidden = false;
  }
  element("live").hidden = false;
  showFigures(element("figures"), state.figures, state.task.endsWith("generation"));
  if (rounds++ % ROUNDS_BETWEEN_HEATS === 0) await showHeat(element("experts"), state.model);
}

function report(error) {
  if (error instanceof CallError && error.status === 401) {
    setKey("");
    element("key-form").hidden = false;
    element("key-error").textContent = error.message;
    element("key").focus();
    return;
  }
  showStatus(error.message, false);
  element("status").className = "lost";
  isPictured = false; // the server that comes back may have another placement
}

function showStatus(text, isReady) {
  const status = element("status");
  if (status.textContent !== text) status.textContent = text; // else it would be read out again
  status.className = isReady ? "ready" : "";
}

function showProgress(isLoading, progress) {
  element("loading").hidden = !isLoading;
  if (!isLoading) return;
  const bar = element("progress");
  const { phase, bytes_done: done, bytes_total: total } = progress;
  const text = [phase];
  if (total) {
    bar.value = done / total;
    text.push(`${bytes(done)} of ${bytes(total)}`);
    if (progress.blocks_total) text.push(`block ${progress.blocks_done} of ${progress.blocks_total}`);
    if (progress.bytes_per_second) text.push(`${bytes(progress.bytes_per_second)}/s`);
    if (progress.seconds_left !== undefined) text.push(`${seconds(progress.seconds_left)} left`);
  } else {
    bar.removeAttribute("value"); // nobody knows how far it is
  }
  element("progress-text").textContent = text.join(", ");
}

async function showPicture() {
  const text = await (await call("ui/placement.svg")).text();
  const picture = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
  element("picture").replaceChildren(document.importNode(picture, true));
  element("placed").hidden = false;
  isPictured = true;
}

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(element("key").value.trim());
  element("key").value = "";
  refresh().catch(report);
});

poll();
