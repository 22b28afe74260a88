// Start: the controls, then the first heatmap.

function offer(select, choices, change) {
  for (const [value, title] of choices) select.append(element("option", title, { value }));
  select.addEventListener("change", () => change(select.value));
}

function describePrecision() {
  const metric = chosenMetric();
  const samples =
    page.n_samples > 1
      ? `Values are means over ${page.n_samples} noise samples. The interval is that of the mean (95%, Student's t over the noise samples).`
      : "There is one noise sample, so there is no interval.";
  byId("precision").textContent =
    `${samples} On this page, ${words(metric.name)} is rounded to ${(10 ** -metric.decimals).toFixed(metric.decimals)}; ` +
    `${page.source} holds every sample in full.` +
    (page.left_off.length ? ` To keep this file small, it has no cells of ${page.left_off.map(words).join(", ")}.` : "");
}

// Everything, as `state` has it.
async function update() {
  byId("mediator").value = state.all ? "all" : state.mediator;
  byId("metric").value = state.metric;
  byId("quantity").value = state.quantity;
  refreshTable();
  describePrecision();
  await show();
}

// After a person's choice: the address names it, so that it can be passed on.
function changed(change) {
  change();
  if (!alone) history.replaceState(null, "", linkOf());
  return update();
}

function choose(fact) {
  return changed(() => {
    state.fact = fact;
    state.active = fact;
    pointAtPeak();
  });
}

function openLink() {
  if (alone || !follow(window.location.hash)) return false;
  state.active = state.fact;
  pointAtPeak();
  findRows();
  state.first = Math.max(0, Math.floor(rows.indexOf(state.fact) / ROWS) * ROWS);
  return true;
}

async function start() {
  if (typeof DecompressionStream === "undefined") return; // the page says what it needs
  setUpTable();
  setUpExplorer();
  setUpSaving();
  const mediators = page.mediators.map((one, at) => [at, one.title]);
  if (mediators.length > 1) mediators.push(["all", "all, side by side"]);
  offer(byId("mediator"), mediators, (value) =>
    changed(() => {
      state.all = value === "all";
      if (!state.all) state.mediator = Number(value);
    }),
  );
  offer(byId("metric"), page.metrics.map((one, at) => [at, words(one.name)]), (value) => changed(() => (state.metric = Number(value))));
  offer(byId("quantity"), Object.entries(QUANTITIES), (value) => changed(() => (state.quantity = value)));
  byId("compare").addEventListener("click", () => changed(() => (state.other = state.other === undefined ? state.fact : undefined)));
  byId("browser").hidden = false;
  byId("status").hidden = true;
  const linked = openLink();
  if (!linked) pointAtPeak();
  await update();
  window.addEventListener("hashchange", () => {
    if (openLink()) update().then(() => byId("facts").scrollIntoView());
  });
  if (linked) byId("facts").scrollIntoView();
  document.documentElement.dataset.drawn = Math.round(performance.now());
}

start().catch((error) => {
  byId("status").hidden = false;
  byId("status").textContent = `The heatmaps cannot be shown: ${error.message}`;
  throw error;
});
