// What leaves the page: links to what is shown, the heatmaps as a picture, their numbers as CSV.

// `#fact=7`, with what differs from how the page opens.
function linkOf() {
  const told = new URLSearchParams({ fact: page.facts[state.fact].id });
  if (comparing()) told.set("with", page.facts[state.other].id);
  if (state.all) told.set("mediator", "all");
  else if (state.mediator) told.set("mediator", page.mediators[state.mediator].key);
  if (chosenMetric().name !== page.metric) told.set("metric", chosenMetric().name);
  if (state.quantity !== "effect") told.set("quantity", state.quantity);
  return `#${told}`;
}

// Take what a link names; what is not on the page is passed over. False where it names no fact.
function follow(link) {
  const told = new URLSearchParams(link.slice(1));
  const found = (name) => page.facts.findIndex((fact) => String(fact.id) === told.get(name));
  if (!told.has("fact") || found("fact") < 0) return false;
  state.fact = found("fact");
  state.other = found("with") >= 0 && hasCells(found("with")) ? found("with") : undefined;
  const mediator = page.mediators.findIndex((one) => one.key === told.get("mediator"));
  state.all = told.get("mediator") === "all" && page.mediators.length > 1;
  state.mediator = Math.max(mediator, 0);
  const metric = page.metrics.findIndex((one) => one.name === (told.get("metric") ?? page.metric));
  if (metric >= 0) state.metric = metric;
  state.quantity = told.get("quantity") in QUANTITIES ? told.get("quantity") : "effect";
  return true;
}

function save(name, content) {
  const link = element("a", undefined, { download: name, href: URL.createObjectURL(content) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const fileName = (suffix) =>
  `${["fact", ...shownFacts().map((fact) => page.facts[fact].id), plot.dataset.shown.split(" ").slice(1).join("-")].join("-")}.${suffix}`;

// The heatmaps as they stand on the page, below a line that says what they show.
function picture() {
  const box = plot.getBoundingClientRect();
  const head = 44;
  const [width, height] = [Math.ceil(box.width), Math.ceil(box.height) + head];
  const whole = drawing("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-family": "system-ui, sans-serif", "font-size": 12 });
  whole.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  whole.append(drawing("rect", { width, height, fill: styleOf("--paper") }));
  const ink = styleOf("--ink");
  [`${document.title}: ${shownFacts().map(nameOf).join("; ")}`, byId("shown").textContent].forEach((text, line) =>
    whole.append(drawing("text", { x: 0, y: 16 + 18 * line, fill: ink }, fitting(text, width))),
  );
  for (const name of plot.querySelectorAll("h5")) {
    const y = name.getBoundingClientRect().bottom - box.top + head - 4;
    whole.append(drawing("text", { x: 0, y, fill: ink, "font-weight": "bold" }, fitting(name.textContent, width, true)));
  }
  for (const svg of plot.querySelectorAll("svg")) {
    const place = svg.getBoundingClientRect();
    const copy = svg.cloneNode(true);
    for (const cursor of copy.querySelectorAll(".cursor")) cursor.remove();
    copy.setAttribute("x", place.left - box.left);
    copy.setAttribute("y", place.top - box.top + head);
    whole.append(copy);
  }
  return { text: new XMLSerializer().serializeToString(whole), width, height };
}

async function savePicture() {
  const { text, width, height } = picture();
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = element("canvas");
  [canvas.width, canvas.height] = [2 * width, 2 * height];
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  context.drawImage(image, 0, 0);
  canvas.toBlob((blob) => save(fileName("png"), blob), "image/png");
}

// A spreadsheet would run what begins like a formula; csv_files.py says the same.
const field = (text) => {
  const tame = /^[=+\-@\t\r\x1b]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(tame) ? `"${tame.replaceAll('"', '""')}"` : tame;
};
const plain = (units) => (units === page.missing ? "" : (units / 10 ** drawn.metric.decimals).toFixed(drawn.metric.decimals));

function table() {
  const lines = ["known_id,mediator,metric,quantity,position,token,role,layer,value,half_width"];
  for (const fact of shownFacts()) {
    const { mean, width } = drawn.cells.get(fact)[state.quantity];
    for (const mediator of shownMediators()) {
      page.facts[fact].tokens.forEach((token, position) => {
        const role = page.roles[page.facts[fact].roles[position]];
        for (let layer = 0; layer < page.n_layers; layer++) {
          const at = cellAt(fact, mediator, layer, position);
          const named = [page.facts[fact].id, page.mediators[mediator].key, drawn.metric.name, state.quantity, position];
          lines.push([...named, field(token), role, layer, plain(mean[at]), page.n_samples > 1 ? plain(width[at]) : ""].join(","));
        }
      });
    }
  }
  return lines.join("\n") + "\n";
}

function setUpSaving() {
  byId("save-png").addEventListener("click", savePicture);
  byId("save-csv").addEventListener("click", () => save(fileName("csv"), new Blob([table()], { type: "text/csv" })));
}
