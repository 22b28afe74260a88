// One heatmap as an SVG: tokens down, layers across, its title above, its colours below.

const ROW = 22;
const LETTERS = "12px system-ui, sans-serif";
const pen = document.createElement("canvas").getContext("2d");

function drawing(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const shortened = (text, most) => ([...text].length > most ? [...text].slice(0, most - 1).join("") + "…" : text);
// Not by role: where the prompt ends with the subject, the role of its last token is `last`.
const isSubject = (fact, position) => page.facts[fact].span[0] <= position && position < page.facts[fact].span[1];

function widthOf(text, bold) {
  pen.font = (bold ? "bold " : "") + LETTERS;
  return pen.measureText(text).width;
}

// A text with its end cut off where there is no room for it.
function fitting(text, room, bold) {
  let most = [...text].length;
  while (most > 1 && widthOf(shortened(text, most), bold) > room) most -= 1;
  return shortened(text, most);
}

// Where the parts of a heatmap stand, in pixels.
function placesIn(fact, width, title) {
  const narrow = width < 500;
  const labels = page.facts[fact].tokens.map((token, position) =>
    isSubject(fact, position) ? `${shortened(token, narrow ? 12 : 22)}*` : shortened(token, narrow ? 12 : 22),
  );
  const widest = Math.max(...labels.map((text, position) => widthOf(text, isSubject(fact, position))));
  const left = Math.min(Math.ceil(widest) + 10, Math.round(width * 0.45));
  const top = title ? 24 : 6;
  const bottom = top + ROW * labels.length;
  return { labels, left, top, bottom, width, height: bottom + 92, cell: (width - left - 14) / page.n_layers };
}

// Every cell, the cells of one colour in one path.
function cellsIn(fact, at, colourOf) {
  const byColour = new Map();
  const gap = at.cell > 12 ? 0.5 : 0;
  page.facts[fact].tokens.forEach((_, position) => {
    for (let layer = 0; layer < page.n_layers; layer++) {
      const colour = colourOf(layer, position);
      const place = `M${(at.left + layer * at.cell + gap).toFixed(2)} ${at.top + position * ROW + gap}`;
      const shape = `${place}h${(at.cell - 2 * gap).toFixed(2)}v${ROW - 2 * gap}h${(2 * gap - at.cell).toFixed(2)}z`;
      byColour.set(colour, (byColour.get(colour) ?? "") + shape);
    }
  });
  return [...byColour].map(([fill, d]) => drawing("path", { d, fill, "shape-rendering": "crispEdges" }));
}

function namesIn(fact, at, ink) {
  const tokens = at.labels.map((text, position) => {
    const y = at.top + (position + 0.5) * ROW + 4;
    const bold = isSubject(fact, position) ? { "font-weight": "bold" } : {};
    return drawing("text", { x: at.left - 6, y, fill: ink, "text-anchor": "end", class: "token", ...bold }, text);
  });
  const room = at.width < 500 ? 9 : 18;
  const step = [1, 2, 5, 10, 20, 50].find((one) => page.n_layers / one <= room) ?? 100;
  const layers = [];
  for (let layer = 0; layer < page.n_layers; layer += step) {
    const x = at.left + (layer + 0.5) * at.cell;
    layers.push(drawing("text", { x, y: at.bottom + 15, fill: ink, "text-anchor": "middle" }, layer));
  }
  const middle = at.left + (page.n_layers * at.cell) / 2;
  layers.push(drawing("text", { x: middle, y: at.bottom + 31, fill: ink, "text-anchor": "middle" }, "layer"));
  return [...tokens, ...layers];
}

// The bar of colours; `zero` is what no effect reads as.
function barIn(at, scale, shade, name, ink, line) {
  const top = at.bottom + 42;
  const width = page.n_layers * at.cell;
  const x = (value) => at.left + ((value - scale.low) / (scale.high - scale.low)) * width;
  const steps = Math.round(width / 3);
  const made = Array.from({ length: steps }, (_, step) => {
    const value = scale.low + ((step + 0.5) / steps) * (scale.high - scale.low);
    const from = at.left + (step * width) / steps;
    return drawing("rect", { x: from, y: top, width: width / steps + 0.5, height: 10, fill: shade(value) });
  });
  made.push(drawing("rect", { x: at.left, y: top, width, height: 10, fill: "none", stroke: line }));
  const metric = chosenMetric();
  let free = -Infinity;
  for (const [value, anchor] of [[scale.low, "start"], [0, "middle"], [scale.high, "end"]]) {
    if (value === 0 && anchor !== "middle") continue;
    const text = shown(Math.round((value + scale.zero) * 10 ** metric.decimals), metric);
    const half = widthOf(text) / 2;
    const centre = Math.min(Math.max(x(value), at.left + half), at.left + width - half);
    if (centre - half < free) continue;
    free = centre + half + 6;
    made.push(drawing("text", { x: centre, y: top + 23, fill: ink, "text-anchor": "middle" }, text));
  }
  const half = widthOf(name) / 2;
  const centre = Math.max(half, Math.min(at.left + width / 2, at.width - half));
  made.push(drawing("text", { x: centre, y: top + 39, fill: ink, "text-anchor": "middle" }, fitting(name, at.width)));
  return made;
}

const frame = (x, y, width, height, stroke, thick, name) =>
  drawing("rect", { x, y, width, height, fill: "none", stroke, "stroke-width": thick, class: name });

// Of a cell: black within white, so that one of them is seen on every colour.
function cursorIn(at, layer, position) {
  const [x, y] = [at.left + layer * at.cell, at.top + position * ROW];
  const box = [Math.min(x, at.width - 6), y, Math.max(at.cell, 4), ROW];
  return [frame(...box, "#ffffff", 5, "cursor"), frame(...box, "#000000", 2.5, "cursor")];
}

// One heatmap. `panel` has the fact, the mediator, the title, the scale and the cursor, if any.
function heatmap(panel, width) {
  const { fact, mediator, title, scale, cursor } = panel;
  const at = placesIn(fact, width, title);
  const [ink, line, paper, accent] = ["--ink", "--line", "--paper", "--accent"].map(styleOf);
  const shade = colouring(mediator, Math.max(-scale.low, scale.high));
  const svg = drawing("svg", {
    width, height: at.height, viewBox: `0 0 ${width} ${at.height}`, "aria-hidden": "true",
    "font-family": "system-ui, sans-serif", "font-size": 12,
  });
  svg.append(drawing("rect", { width, height: at.height, fill: paper }));
  if (title) {
    svg.append(drawing("text", { x: 0, y: 14, fill: ink, "font-weight": "bold" }, fitting(title, width, true)));
  }
  const cells = cellsIn(fact, at, (layer, position) => {
    const value = panel.valueAt(layer, position);
    return value === undefined ? line : shade(value - scale.zero);
  });
  const [start, stop] = page.facts[fact].span;
  const whole = [at.left, at.top, page.n_layers * at.cell, at.bottom - at.top];
  const subject = [at.left, at.top + start * ROW, page.n_layers * at.cell, (stop - start) * ROW];
  svg.append(
    ...cells,
    frame(...whole, line, 1, "whole"),
    frame(...subject, accent, 1.5, "subject"),
    ...namesIn(fact, at, ink),
    ...barIn(at, scale, shade, panel.measure, ink, line),
    ...(cursor ? cursorIn(at, ...cursor) : []),
  );
  svg.cellAt = (x, y) => {
    const box = svg.getBoundingClientRect();
    const zoom = width / box.width;
    const layer = Math.floor(((x - box.left) * zoom - at.left) / at.cell);
    const position = Math.floor(((y - box.top) * zoom - at.top) / ROW);
    const inside = layer >= 0 && layer < page.n_layers && position >= 0 && position < at.labels.length;
    return inside ? [layer, position] : undefined;
  };
  svg.placeOf = (layer, position) => [at.left + (layer + 0.5) * at.cell, at.top + (position + 0.5) * ROW];
  return svg;
}
