// How often each expert of each layer is used, as a grid: a row for each layer.

import { callJSON } from "./api.js";
import { percent } from "./format.js";

export async function showHeat(section, model) {
  const { layers } = await callJSON(`v2/models/${encodeURIComponent(model)}/experts`);
  section.hidden = layers.length === 0;
  if (layers.length === 0) return;
  const canvas = section.querySelector("canvas");
  canvas.width = Math.max(...layers.map((layer) => layer.tokens.length));
  canvas.height = layers.length;
  canvas.style.height = `${Math.min(480, 8 * layers.length)}px`;
  const pen = canvas.getContext("2d");
  layers.forEach((layer, row) => {
    const most = Math.max(1, ...layer.tokens);
    layer.tokens.forEach((count, column) => {
      const warmth = Math.sqrt(count / most);
      pen.fillStyle = `hsl(${220 - 200 * warmth} 80% ${22 + 40 * warmth}%)`;
      pen.fillRect(column, row, 1, 1);
    });
  });
  const mean = layers.reduce((sum, layer) => sum + layer.hottest_share, 0) / layers.length;
  section.querySelector("#heat-text").textContent =
    `${layers.length} layers from top to bottom, experts from left to right, the most used ones in red. ` +
    `The most used tenth of a layer's experts gets ${percent(mean)} of its tokens.`;
}
