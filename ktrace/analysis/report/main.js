// Start: the controls, then the library, then the first heatmap.

function offer(select, choices, chosen, change) {
  for (const [value, title] of choices) select.append(element("option", title, { value }));
  select.value = chosen;
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
    "effects.parquet holds every sample in full." +
    (page.left_off.length ? ` To keep this file small, it has no cells of ${page.left_off.map(words).join(", ")}.` : "");
}

async function start() {
  if (typeof DecompressionStream === "undefined") return; // the page says what it needs
  const choose = (fact) => {
    state.fact = fact;
    pointAtPeak();
    drawHeatmap();
  };
  setUpTable(choose);
  setUpHeatmap();
  offer(byId("mediator"), page.mediators.map((one, at) => [at, one.title]), state.mediator, (value) => {
    state.mediator = Number(value);
    refreshTable();
    drawHeatmap();
  });
  offer(byId("metric"), page.metrics.map((one, at) => [at, words(one.name)]), state.metric, (value) => {
    state.metric = Number(value);
    refreshTable();
    describePrecision();
    drawHeatmap();
  });
  offer(byId("quantity"), Object.entries(QUANTITIES), state.quantity, (value) => {
    state.quantity = value;
    drawHeatmap();
  });
  byId("browser").hidden = false;
  byId("status").hidden = true;
  refreshTable();
  describePrecision();
  // The policy of this page lets exactly this text run: its digest stands there.
  pointAtPeak();
  const library = element("script", new TextDecoder().decode(await inflate("plotly")));
  document.head.append(library);
  await drawHeatmap();
  plot.on("plotly_click", ({ points }) => moveCell(points[0].x, points[0].y));
  document.documentElement.dataset.drawn = Math.round(performance.now());
}

start().catch((error) => {
  byId("status").hidden = false;
  byId("status").textContent = `The heatmaps cannot be shown: ${error.message}`;
  throw error;
});
