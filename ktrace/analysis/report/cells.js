// Cells: the other half of `_encode` in cells.py.

const page = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

async function inflate(id) {
  const binary = atob(byId(id).textContent);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(stream).arrayBuffer();
}

const chunks = new Map();
const CHUNKS_KEPT = 12; // a chunk may take a megabyte once inflated

function chunkOf(metric, group) {
  const id = `cells-${metric.name}-${group}`;
  if (!chunks.has(id)) chunks.set(id, inflate(id).then((buffer) => new Uint8Array(buffer)));
  if (chunks.size > CHUNKS_KEPT) chunks.delete(chunks.keys().next().value);
  return chunks.get(id);
}

const cellsOf = (fact) => page.mediators.length * page.n_layers * page.facts[fact].tokens.length;

// Whole numbers of the metric's decimal unit, each array (mediator, layer, position).
async function readCells(metric, fact) {
  const group = Math.floor(fact / page.chunk_facts);
  const first = group * page.chunk_facts;
  const beyond = Math.min(first + page.chunk_facts, page.n_traced);
  let total = 0;
  let start = 0;
  for (let other = first; other < beyond; other++) {
    if (other === fact) start = total;
    total += cellsOf(other);
  }
  const bytes = await chunkOf(metric, group);
  const plane = (number) => {
    const values = new Int32Array(cellsOf(fact));
    const base = number * 4 * total + start;
    for (let i = 0; i < values.length; i++) {
      const at = base + i;
      const folded =
        bytes[at] | (bytes[at + total] << 8) | (bytes[at + 2 * total] << 16) | (bytes[at + 3 * total] << 24);
      values[i] = (folded >>> 1) ^ -(folded & 1);
    }
    return values;
  };
  const effect = plane(0);
  const restored = plane(1);
  const corrupted = page.scores[metric.name].corrupted[fact];
  for (let i = 0; i < effect.length; i++) {
    restored[i] = effect[i] === page.missing ? page.missing : effect[i] + restored[i] + corrupted;
  }
  return { effect: { mean: effect, width: plane(2) }, restored: { mean: restored, width: plane(3) } };
}

function shown(units, metric) {
  if (units === page.missing || units === undefined) return "–";
  const digits = (Math.abs(units) / 10 ** metric.decimals).toFixed(metric.decimals);
  return units < 0 ? `−${digits}` : digits;
}

// Control characters, and marks that turn around what follows them, are shown and do nothing.
const ACTING = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const calm = (text) =>
  text.replace(ACTING, (one) => (one === "\n" ? "↵" : `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`));

const words = (name) => name.replaceAll("_", " ");

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
