// One fact's cells: the heatmap, the cell that is pointed at, and the same values as a table.

const QUANTITIES = { effect: "indirect effect", restored: "restored" };
const plot = byId("heatmap");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
let printing = false;
let drawn; // what the heatmap shows: { fact, metric, cells }
let request = 0;

// Orange, neutral, purple (PuOr): told apart with every kind of colour vision. Neutral is the paper.
const DIVERGING = {
  light: [[179, 88, 6], [241, 163, 64], [255, 255, 255], [153, 142, 195], [63, 26, 107]],
  dark: [[255, 180, 92], [160, 96, 26], [21, 21, 27], [106, 82, 163], [217, 200, 255]],
};

// From `low` to `high`, with the neutral colour at 0 and the same steps on both sides of it.
function aroundZero(low, high) {
  const colours = DIVERGING[dark.matches && !printing ? "dark" : "light"];
  const reach = Math.max(-low, high);
  return Array.from({ length: 21 }, (_, step) => {
    const place = ((low + ((high - low) * step) / 20) / reach + 1) * 2; // 0 to 4
    const below = Math.min(Math.floor(place), 3);
    const mixed = colours[below].map((one, part) => Math.round(one + (colours[below + 1][part] - one) * (place - below)));
    return [step / 20, `rgb(${mixed.join(",")})`];
  });
}

// Plotly reads tags and entities in labels: text from data must not be taken for them.
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const visible = (token) => token.replaceAll("\n", "↵").replaceAll("\t", "⇥").trim() || "␣".repeat(Math.max(1, token.length));
const shortened = (text, most) => ([...text].length > most ? [...text].slice(0, most - 1).join("") + "…" : text);

// Not by role: where the prompt ends with the subject, the role of its last token is `last`.
const isSubject = (fact, position) => page.facts[fact].span[0] <= position && position < page.facts[fact].span[1];
const cellAt = (layer, position) =>
  (state.mediator * page.n_layers + layer) * page.facts[state.fact].tokens.length + position;

function numbersAt(layer, position) {
  const { mean, width } = drawn.cells[state.quantity];
  const at = cellAt(layer, position);
  const value = shown(mean[at], drawn.metric);
  const half = width[at];
  if (mean[at] === page.missing || page.n_samples < 2 || half === page.missing) return { value };
  return {
    value,
    half: shown(half, drawn.metric),
    interval: `${shown(mean[at] - half, drawn.metric)} to ${shown(mean[at] + half, drawn.metric)}`,
  };
}

function scaleOf(values) {
  // Over every mediator, so that switching between them compares like with like.
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value === page.missing) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const unit = 10 ** drawn.metric.decimals;
  if (!(low <= high)) return [0, 1];
  if (state.quantity === "restored") return [low / unit, Math.max(high, low + 1) / unit];
  return [Math.min(low, 0) / unit, Math.max(high, low < 0 ? 0 : 1) / unit];
}

function subjectFrame(fact, colour) {
  const [start, stop] = page.facts[fact].span;
  return [frame(-0.5, page.n_layers - 0.5, start - 0.5, stop - 0.5, colour, 1.5)];
}

const frame = (x0, x1, y0, y1, color, width) => ({ type: "rect", x0, x1, y0, y1, line: { color, width }, fillcolor: "rgba(0,0,0,0)" });

function layout() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const [ink, line, paper, accent] = ["--ink", "--line", "--paper", "--accent"].map(colour);
  const tokens = page.facts[state.fact].tokens;
  const most = plot.clientWidth < 500 ? 12 : 22;
  const step = [1, 2, 4, 5, 10, 20].find((one) => page.n_layers / one <= (plot.clientWidth < 500 ? 9 : 18)) ?? 20;
  const bounds = [state.layer - 0.5, state.layer + 0.5, state.position - 0.5, state.position + 0.5];
  return {
    height: 110 + 24 * tokens.length,
    margin: { l: 10, r: 10, t: 10, b: 45 },
    paper_bgcolor: paper,
    plot_bgcolor: paper,
    font: { family: style.fontFamily || "sans-serif", color: ink, size: 12 },
    hoverlabel: { align: "left", bgcolor: paper, bordercolor: line, font: { color: ink } },
    xaxis: { title: { text: "layer" }, tick0: 0, dtick: step, showgrid: false, zeroline: false, fixedrange: true, linecolor: line,
      range: [-0.5, page.n_layers - 0.5] },
    yaxis: {
      tickvals: tokens.map((_, position) => position),
      ticktext: tokens.map((token, position) => {
        const text = escaped(shortened(visible(token), most));
        return isSubject(state.fact, position) ? `<b>${text}*</b>` : text;
      }),
      range: [tokens.length - 0.5, -0.5],
      automargin: true, showgrid: false, zeroline: false, fixedrange: true, ticks: "", ticklabelstandoff: 6, tickfont: { size: 12, color: ink },
    },
    shapes: [...subjectFrame(state.fact, accent), frame(...bounds, ink, 2)],
  };
}

function trace() {
  const fact = page.facts[state.fact];
  const unit = 10 ** drawn.metric.decimals;
  const { mean } = drawn.cells[state.quantity];
  const layers = Array.from({ length: page.n_layers }, (_, layer) => layer);
  const grid = (make) => fact.tokens.map((token, position) => layers.map((layer) => make(layer, position)));
  const [zmin, zmax] = scaleOf(mean);
  return {
    type: "heatmap",
    z: grid((layer, position) => {
      const value = mean[cellAt(layer, position)];
      return value === page.missing ? null : value / unit;
    }),
    customdata: grid((layer, position) => {
      const { value, interval } = numbersAt(layer, position);
      return [escaped(visible(fact.tokens[position])), value, interval ? `<br>95% interval ${interval}` : ""];
    }),
    hovertemplate: "%{customdata[0]}<br>layer %{x}<br><b>%{customdata[1]}</b>%{customdata[2]}<extra></extra>",
    hoverongaps: false,
    zmin,
    zmax,
    colorscale: state.quantity === "effect" ? aroundZero(zmin, zmax) : "Cividis",
    colorbar: { thickness: 12, outlinewidth: 0, tickfont: { size: 11 } },
    xgap: 1,
    ygap: 1,
  };
}

async function drawHeatmap() {
  const mine = ++request;
  const { fact } = state;
  const metric = chosenMetric();
  drawFact();
  if (!isTraced(fact) || fact >= metric.n_facts) return;
  const cells = await readCells(metric, fact);
  if (mine !== request) return; // another fact or metric has been chosen meanwhile
  drawn = { fact, metric, cells };
  const mediator = page.mediators[state.mediator];
  plot.setAttribute(
    "aria-label",
    `Heatmap of ${QUANTITIES[state.quantity]}, ${words(metric.name)}, ${mediator.title}: tokens by layers. ` +
      "Arrow keys move through the cells; the table below holds the same values.",
  );
  await Plotly.react(plot, [trace()], layout(), { displayModeBar: false, responsive: true });
  // Its parts have no names of their own; the label, the cell and the table say what they show.
  for (const part of document.querySelectorAll("#heatmap .plot-container, #js-plotly-tester")) {
    part.setAttribute("aria-hidden", "true");
  }
  drawCell();
  drawValues();
  plot.dataset.shown = [page.facts[fact].id, mediator.key, metric.name, state.quantity].join(" ");
}

function drawFact() {
  const fact = page.facts[state.fact];
  const metric = chosenMetric();
  // Offsets count characters, where a string counts some of them twice.
  const letters = [...fact.prompt];
  const part = (start, stop) => letters.slice(start, stop).join("");
  const [start, stop] = fact.marked;
  byId("prompt").replaceChildren(part(0, start), element("mark", part(start, stop)), part(stop));
  const scores = page.scores[metric.name];
  const traced = isTraced(state.fact);
  const held = traced && state.fact < metric.n_facts;
  byId("traced").hidden = !held;
  byId("outcome").textContent = traced
    ? `Answer “${fact.attribute}”: ${words(metric.name)} ${shown(scores.clean[state.fact], metric)} in the clean run, ` +
      `${shown(scores.corrupted[state.fact], metric)} in the corrupted run: total effect ${shown(scores.total[state.fact], metric)}.` +
      (held ? "" : " Its cells did not fit on this page; effects.parquet holds them.")
    : `Answer “${fact.attribute}”, predicted “${fact.predicted.trim()}”. Left out: ${fact.left_out}.`;
}

function drawCell() {
  const fact = page.facts[state.fact];
  const { value, half, interval } = numbersAt(state.layer, state.position);
  const role = page.roles[fact.roles[state.position]] || "before the subject";
  byId("cell").replaceChildren(
    element("strong", value),
    (half ? ` ± ${half} (${interval})` : "") +
      ` at layer ${state.layer}, position ${state.position}, token “${visible(fact.tokens[state.position])}”, ${role}`,
  );
}

function drawValues() {
  if (!byId("values").open) return;
  const fact = page.facts[state.fact];
  const head = element("tr");
  head.append(element("th", "token", { scope: "col", class: "text" }));
  const body = [];
  for (let layer = 0; layer < page.n_layers; layer++) head.append(element("th", layer, { scope: "col" }));
  fact.tokens.forEach((token, position) => {
    const row = element("tr");
    row.append(element("th", visible(token) + (isSubject(state.fact, position) ? "*" : ""), { scope: "row" }));
    for (let layer = 0; layer < page.n_layers; layer++) {
      const { value, half } = numbersAt(layer, position);
      const cell = element("td", value);
      if (half) cell.append(element("span", `± ${half}`, { class: "width" }));
      row.append(cell);
    }
    body.push(row);
  });
  const caption = element("caption", "Columns are layers, rows are tokens; * marks the subject; ± is half of the 95% interval.");
  const table = document.querySelector("#values table");
  const parts = [element("thead"), element("tbody")];
  parts[0].append(head);
  parts[1].append(...body);
  table.replaceChildren(caption, ...parts);
}

function moveCell(layer, position) {
  state.layer = Math.min(Math.max(layer, 0), page.n_layers - 1);
  state.position = Math.min(Math.max(position, 0), page.facts[state.fact].tokens.length - 1);
  Plotly.relayout(plot, { shapes: layout().shapes });
  drawCell();
}

function setUpHeatmap() {
  plot.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!(event.key in steps)) return;
    event.preventDefault();
    moveCell(state.layer + steps[event.key][0], state.position + steps[event.key][1]);
  });
  byId("values").addEventListener("toggle", drawValues);
  dark.addEventListener("change", drawHeatmap);
  const redraw = () => drawn && Plotly.react(plot, [trace()], layout());
  window.addEventListener("beforeprint", () => ((printing = true), redraw()));
  window.addEventListener("afterprint", () => ((printing = false), redraw()));
}
