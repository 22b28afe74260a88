// What is shown of a fact, or of two: heatmaps, the cell that is pointed at, a table of its values.

const QUANTITIES = { effect: "indirect effect", restored: "restored" };
const SHORT = { effect: "IE", restored: "restored" };
const plot = byId("heatmap");
const LEAST_PANEL = 300; // pixels: narrower panels go below each other
const GAP = 20;
let drawn; // what is on the page: { metric, cells: Map of fact to its cells }
let request = 0;

const hasCells = (fact, metric = chosenMetric()) => isTraced(fact) && fact < metric.n_facts;
const comparing = () => state.other !== undefined && state.other !== state.fact;
// The fact that is kept stands first.
const shownFacts = () => [...(comparing() ? [state.other] : []), state.fact].filter((fact) => hasCells(fact));
const shownMediators = () => (state.all ? page.mediators.map((_, at) => at) : [state.mediator]);
const nameOf = (fact) => `fact ${page.facts[fact].id}: ${calm(page.facts[fact].subject)}`;

const cellAt = (fact, mediator, layer, position) =>
  (mediator * page.n_layers + layer) * page.facts[fact].tokens.length + position;

function numbersAt(fact, mediator, layer, position) {
  const { mean, width } = drawn.cells.get(fact)[state.quantity];
  const at = cellAt(fact, mediator, layer, position);
  const value = shown(mean[at], drawn.metric);
  const half = width[at];
  if (mean[at] === page.missing || page.n_samples < 2 || half === page.missing) return { value };
  return {
    value,
    half: shown(half, drawn.metric),
    interval: `${shown(mean[at] - half, drawn.metric)} to ${shown(mean[at] + half, drawn.metric)}`,
  };
}

// What no effect reads as: 0, or of a restored score what the run has that the mediator changes.
const zeroOf = (fact, mediator) =>
  state.quantity === "restored" ? page.scores[drawn.metric.name][page.mediators[mediator].base][fact] : 0;

// Over every mediator and both facts, so that switching between them compares like with like.
function limits() {
  let low = 0;
  let high = 0;
  for (const fact of shownFacts()) {
    const { mean } = drawn.cells.get(fact)[state.quantity];
    const size = mean.length / page.mediators.length;
    for (let at = 0; at < mean.length; at++) {
      if (mean[at] === page.missing) continue;
      const apart = mean[at] - zeroOf(fact, Math.floor(at / size));
      low = Math.min(low, apart);
      high = Math.max(high, apart);
    }
  }
  const unit = 10 ** drawn.metric.decimals;
  return low === high ? { low: 0, high: 1 } : { low: low / unit, high: high / unit };
}

const measure = (names = QUANTITIES) => {
  const sign = drawn.metric.lower_helps && state.quantity === "effect" ? "; negative helps" : "";
  return `${names[state.quantity]} (${drawn.metric.label}${sign})`;
};

function panels() {
  const unit = 10 ** drawn.metric.decimals;
  const { low, high } = limits();
  const made = [];
  for (const fact of shownFacts()) {
    for (const mediator of shownMediators()) {
      const { mean } = drawn.cells.get(fact)[state.quantity];
      made.push({
        fact,
        mediator,
        title: state.all ? page.mediators[mediator].title : comparing() ? nameOf(fact) : "",
        measure: measure(SHORT),
        scale: { low, high, zero: zeroOf(fact, mediator) / unit },
        cursor: fact === state.active && !printing ? [state.layer, state.position] : undefined,
        valueAt: (layer, position) => {
          const value = mean[cellAt(fact, mediator, layer, position)];
          return value === page.missing ? undefined : value / unit;
        },
      });
    }
  }
  return made;
}

// As wide as there is room for, and again whenever that changes.
function render() {
  if (!drawn || !shownFacts().length || !shownFacts().every((fact) => drawn.cells.has(fact))) return;
  const made = panels();
  byId("browser").classList.toggle("wide", made.length > 1);
  const room = printing ? 660 : plot.clientWidth;
  const abreast = Math.max(1, Math.min(made.length, Math.floor((room + GAP) / (LEAST_PANEL + GAP))));
  const width = Math.floor((room - GAP * (abreast - 1)) / abreast);
  plot.style.gap = `${GAP}px`;
  plot.replaceChildren(
    ...made.flatMap((panel, number) => {
      const svg = heatmap(panel, Math.max(width, 160));
      svg.panel = panel;
      // Of two facts with all mediators, each begins a line.
      const begins = comparing() && state.all && panel.fact !== made[number - 1]?.fact;
      return begins ? [element("h5", capital(nameOf(panel.fact))), svg] : [svg];
    }),
  );
}

async function show() {
  const mine = ++request;
  const metric = chosenMetric();
  drawFact();
  const facts = shownFacts();
  if (!facts.length) return;
  const cells = new Map(await Promise.all(facts.map(async (fact) => [fact, await readCells(metric, fact)])));
  if (mine !== request) return; // another fact or metric has been chosen meanwhile
  drawn = { metric, cells };
  if (!facts.includes(state.active)) state.active = facts.at(-1);
  const mediator = state.all ? { title: "all mediators", key: "all" } : page.mediators[state.mediator];
  byId("shown").textContent = `${capital(measure())}, ${mediator.title}`;
  plot.setAttribute(
    "aria-label",
    `Heatmaps of ${measure()}, ${mediator.title}: tokens by layers. ` +
      "Arrow keys move through the cells; the table below holds the same values.",
  );
  render();
  drawCell();
  drawValues();
  const ids = facts.map((fact) => page.facts[fact].id).join("+");
  plot.dataset.shown = [ids, mediator.key, metric.name, state.quantity].join(" ");
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

// Text in a direction of its own: what it holds turns nothing around it.
const quoted = (text) => ["“", element("bdi", calm(text)), "”"];

function drawFact() {
  const fact = page.facts[state.fact];
  const metric = chosenMetric();
  // Offsets count characters, where a string counts some of them twice.
  const letters = [...fact.prompt];
  const part = (start, stop) => calm(letters.slice(start, stop).join(""));
  const [start, stop] = fact.marked;
  byId("prompt").replaceChildren(part(0, start), element("mark", part(start, stop)), part(stop));
  const scores = page.scores[metric.name];
  const traced = isTraced(state.fact);
  const held = hasCells(state.fact);
  byId("traced").hidden = !shownFacts().length;
  byId("compare").hidden = alone || !held;
  const of = (column) => shown(scores[column][state.fact], metric);
  byId("outcome").replaceChildren(
    ...(fact.relation ? ["Relation ", element("bdi", calm(fact.relation)), ". "] : []),
    ...["Answer ", ...quoted(fact.attribute)],
    traced
      ? `: ${words(metric.name)} ${of("clean")} in the clean run, ${of("corrupted")} in the corrupted run: ` +
          `total effect ${of("total")}.` +
          (held ? "" : ` Its cells did not fit on this page; ${page.source} holds them.`)
      : ", predicted ",
    ...(traced ? [] : [...quoted(fact.predicted.trim()), `. Left out: ${fact.left_out}.`]),
  );
  const kept = byId("kept");
  kept.hidden = state.other === undefined;
  if (!kept.hidden) kept.replaceChildren("Compared with ", element("bdi", nameOf(state.other)), ". Choose the other one in the table.");
  byId("compare").textContent = state.other === undefined ? "Compare with another fact" : "Stop comparing";
}

const roleAt = (fact, position) => page.roles[page.facts[fact].roles[position]] || "before the subject";

function drawCell() {
  const fact = state.active;
  const { layer, position } = state;
  const said = shownMediators().flatMap((mediator, number) => {
    const { value, half, interval } = numbersAt(fact, mediator, layer, position);
    const name = state.all ? `${number ? "; " : ""}${page.mediators[mediator].title} ` : "";
    return [name, element("strong", value), half ? ` ± ${half}${state.all ? "" : ` (${interval})`}` : ""];
  });
  const token = ["token ", ...quoted(page.facts[fact].tokens[position])];
  byId("cell").replaceChildren(
    ...(comparing() ? [element("bdi", capital(nameOf(fact))), ": "] : []),
    ...said,
    ` at layer ${layer}, position ${position}, `,
    ...token,
    `, ${roleAt(fact, position)}`,
  );
}

function drawValues() {
  if (!byId("values").open) return;
  const fact = state.active;
  const head = element("tr");
  head.append(element("th", "token", { scope: "col", class: "text" }));
  const body = [];
  for (let layer = 0; layer < page.n_layers; layer++) head.append(element("th", layer, { scope: "col" }));
  page.facts[fact].tokens.forEach((token, position) => {
    const row = element("tr");
    row.append(element("th", token + (isSubject(fact, position) ? "*" : ""), { scope: "row" }));
    for (let layer = 0; layer < page.n_layers; layer++) {
      const { value, half } = numbersAt(fact, state.mediator, layer, position);
      const cell = element("td", value);
      if (half) cell.append(element("span", `± ${half}`, { class: "width" }));
      row.append(cell);
    }
    body.push(row);
  });
  const what = `${capital(nameOf(fact))}: ${measure()}, ${page.mediators[state.mediator].title}. `;
  const caption = element("caption", `${what}Columns are layers, rows are tokens; * marks the subject; ± is half of the 95% interval.`);
  const table = document.querySelector("#values table");
  const groups = [element("thead"), element("tbody")];
  groups[0].append(head);
  groups[1].append(...body);
  table.replaceChildren(caption, ...groups);
}

function moveCell(fact, layer, position) {
  state.active = fact;
  state.layer = Math.min(Math.max(layer, 0), page.n_layers - 1);
  state.position = Math.min(Math.max(position, 0), page.facts[fact].tokens.length - 1);
  render();
  drawCell();
  drawValues();
}

// The numbers of the cell under the pointer, beside it.
function point(event) {
  const tip = byId("tip");
  const svg = event.target.closest("svg");
  const found = svg?.cellAt(event.clientX, event.clientY);
  tip.hidden = !found;
  if (!found) return;
  const { fact, mediator } = svg.panel;
  const { value, interval } = numbersAt(fact, mediator, ...found);
  tip.replaceChildren(
    element("bdi", page.facts[fact].tokens[found[1]]),
    element("span", `layer ${found[0]}`),
    element("strong", value),
    ...(interval ? [element("span", `95% interval ${interval}`)] : []),
  );
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  const left = event.clientX + 14 + width > document.documentElement.clientWidth ? event.clientX - 14 - width : event.clientX + 14;
  tip.style.left = `${Math.max(left, 0)}px`;
  tip.style.top = `${Math.max(event.clientY - height - 10, 0)}px`;
}

function setUpExplorer() {
  plot.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!(event.key in steps)) return;
    event.preventDefault();
    moveCell(state.active, state.layer + steps[event.key][0], state.position + steps[event.key][1]);
  });
  plot.addEventListener("click", (event) => {
    const svg = event.target.closest("svg");
    const found = svg?.cellAt(event.clientX, event.clientY);
    if (found) moveCell(svg.panel.fact, ...found);
  });
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerleave", () => (byId("tip").hidden = true));
  byId("values").addEventListener("toggle", drawValues);
  dark.addEventListener("change", render);
  let known = plot.clientWidth;
  new ResizeObserver(() => {
    if (plot.clientWidth === known || printing) return;
    known = plot.clientWidth;
    render();
  }).observe(plot);
  window.addEventListener("beforeprint", () => ((printing = true), render()));
  window.addEventListener("afterprint", () => ((printing = false), render()));
}
