// The table of facts: search, filter, sort, pages, and the keyboard.

const ROWS = 12;
const alone = !byId("table"); // an embedded page has one fact, and neither table nor links
const N_MEDIATORS = page.mediators.length;
const state = {
  fact: 0,
  other: undefined, // a fact that is kept beside it
  active: 0, // which of the two the cursor is in
  mediator: 0,
  all: false, // whether all mediators stand side by side
  metric: page.metrics.findIndex((metric) => metric.name === page.metric),
  quantity: "effect",
  column: "order",
  descending: false,
  first: 0,
  layer: 0,
  position: 0,
};
const chosenMetric = () => page.metrics[state.metric];
const isTraced = (fact) => fact < page.n_traced;

const score = (name) => (fact) => page.scores[chosenMetric().name][name][fact];
// Of a fact's peak: 0 is the effect, 1 the layer, 2 the position.
const ofPeak = (fact, part) => page.scores[chosenMetric().name].peaks[fact]?.[3 * state.mediator + part];
const peak = (fact) => ofPeak(fact, 0);
const peakLayer = (fact) => ((peak(fact) ?? page.missing) === page.missing ? undefined : ofPeak(fact, 1));

// The cell that a newly chosen fact starts from: its peak.
function pointAtPeak() {
  if (!isTraced(state.fact)) return;
  state.layer = peakLayer(state.fact) ?? 0;
  state.position = ofPeak(state.fact, 2);
}

const columns = [
  { name: "id", title: "id", value: (fact) => page.facts[fact].id, text: (value) => String(value) },
  { name: "subject", title: "subject", value: (fact) => page.facts[fact].subject, isText: true },
  { name: "attribute", title: "answer", value: (fact) => page.facts[fact].attribute, isText: true },
  { name: "clean", title: "clean", value: score("clean") },
  { name: "corrupted", title: "corrupted", value: score("corrupted") },
  { name: "total", title: "TE", value: score("total") },
  { name: "peak", title: "peak IE", value: peak },
  { name: "layer", title: "layer", value: peakLayer, text: (value) => String(value ?? "–") },
];
const haystacks = page.facts.map((fact) =>
  [fact.id, fact.subject, fact.prompt, fact.attribute, fact.relation, fact.left_out ?? ""].join("\n").toLowerCase(),
);

let rows = []; // facts that are found, in the order of the table

function findRows() {
  const wanted = byId("search").value.trim().toLowerCase();
  const filter = byId("filter").value;
  const relation = byId("relation").value; // `=` and its name, or nothing for all
  rows = [];
  for (let fact = 0; fact < page.facts.length; fact++) {
    if (filter === "traced" && !isTraced(fact)) continue;
    if (filter === "left out" && isTraced(fact)) continue;
    if (relation && relation !== `=${page.facts[fact].relation}`) continue;
    if (haystacks[fact].includes(wanted)) rows.push(fact);
  }
  const column = columns.find((one) => one.name === state.column);
  if (!column) return;
  const collator = new Intl.Collator();
  const keys = new Map(rows.map((fact) => [fact, column.value(fact) ?? page.missing]));
  const compare = column.isText
    ? (a, b) => collator.compare(keys.get(a), keys.get(b))
    : (a, b) => keys.get(a) - keys.get(b);
  // What has no number stays at the end, whichever way the rest is sorted.
  const lacks = (fact) => Number(keys.get(fact) === page.missing);
  rows.sort((a, b) => lacks(a) - lacks(b) || (state.descending ? compare(b, a) : compare(a, b)));
}

function drawTable() {
  const head = document.querySelector("#table thead tr");
  for (const cell of head.children) {
    const sorted = cell.dataset.column === state.column;
    cell.setAttribute("aria-sort", sorted ? (state.descending ? "descending" : "ascending") : "none");
    const column = columns.find((one) => one.name === cell.dataset.column);
    cell.firstChild.textContent = column.title + (sorted ? (state.descending ? " ↓" : " ↑") : "");
  }
  state.first = Math.min(state.first, Math.max(0, Math.floor((rows.length - 1) / ROWS) * ROWS));
  const visible = rows.slice(state.first, state.first + ROWS);
  const reachable = visible.includes(state.fact) ? state.fact : visible[0];
  document.querySelector("#table tbody").replaceChildren(
    ...visible.map((fact) => {
      const row = element("tr", undefined, {
        "aria-selected": String(fact === state.fact),
        ...(fact === state.other ? { class: "kept" } : {}),
        tabindex: fact === reachable ? "0" : "-1",
        "data-fact": fact,
      });
      for (const column of columns) {
        const value = column.value(fact);
        const text = column.isText ? calm(value) : (column.text ?? ((units) => shown(units, chosenMetric())))(value);
        const cell = element("td", text, { role: "gridcell", class: column.isText ? "text" : "number" });
        if (column.isText) cell.title = text;
        row.append(cell);
      }
      return row;
    }),
  );
  const last = Math.min(state.first + ROWS, rows.length);
  byId("range").textContent = rows.length
    ? `${(state.first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`
    : "No fact is found";
  byId("previous").disabled = state.first === 0;
  byId("next").disabled = last >= rows.length;
  byId("columns").textContent =
    `clean, corrupted: ${words(chosenMetric().name)} of the answer in these runs; TE: clean − corrupted. ` +
    `peak IE, layer: the strongest indirect effect of ${page.mediators[state.mediator].title} at a token of the subject.`;
}

function refreshTable() {
  if (alone) return;
  findRows();
  drawTable();
}

function goTo(place) {
  if (!rows.length) return;
  const at = Math.min(Math.max(place, 0), rows.length - 1);
  state.first = Math.floor(at / ROWS) * ROWS;
  choose(rows[at]);
  document.querySelector(`#table tr[data-fact="${rows[at]}"]`).focus();
}

function offerRelations() {
  const counts = new Map();
  for (const { relation } of page.facts) counts.set(relation, (counts.get(relation) ?? 0) + 1);
  byId("relation").parentElement.hidden = counts.size < 2;
  byId("relation").append(element("option", "all", { value: "" }));
  const collator = new Intl.Collator();
  for (const [name, count] of [...counts].sort((a, b) => collator.compare(a[0], b[0]))) {
    byId("relation").append(element("option", `${calm(name) || "none"} (${count.toLocaleString("en")})`, { value: `=${name}` }));
  }
}

function setUpTable() {
  if (alone) return;
  const head = document.querySelector("#table thead tr");
  for (const column of columns) {
    const cell = element("th", undefined, { scope: "col", "data-column": column.name, class: column.isText ? "text" : "number" });
    const button = element("button", column.title, { type: "button" });
    button.addEventListener("click", () => {
      // Numbers are sought at the top, words in their order.
      state.descending = state.column === column.name ? !state.descending : !column.isText && column.name !== "id";
      state.column = column.name;
      state.first = 0;
      refreshTable();
    });
    cell.append(button);
    head.append(cell);
  }
  const counts = { traced: page.n_traced, "left out": page.facts.length - page.n_traced, all: page.facts.length };
  for (const [name, count] of Object.entries(counts)) {
    byId("filter").append(element("option", `${name} (${count.toLocaleString("en")})`, { value: name }));
  }
  offerRelations();
  const again = () => {
    state.first = 0;
    refreshTable();
  };
  byId("search").addEventListener("input", again);
  byId("filter").addEventListener("change", again);
  byId("relation").addEventListener("change", again);
  byId("previous").addEventListener("click", () => ((state.first -= ROWS), drawTable()));
  byId("next").addEventListener("click", () => ((state.first += ROWS), drawTable()));
  const body = document.querySelector("#table tbody");
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) goTo(rows.indexOf(Number(row.dataset.fact)));
  });
  body.addEventListener("keydown", (event) => {
    const row = event.target.closest("tr");
    const at = rows.indexOf(Number(row.dataset.fact));
    const places = {
      ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + ROWS, PageUp: at - ROWS,
      Home: 0, End: rows.length - 1, Enter: at, " ": at,
    };
    if (!(event.key in places)) return;
    event.preventDefault();
    goTo(places[event.key]);
  });
}
