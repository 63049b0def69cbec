// Raw maps → masks → colours.

const lut = {};
for (const [name, text] of Object.entries(index.palettes)) lut[name] = bytes(text);
const AROUND_ZERO = "RdBu_r";
const SIDE = 224; // of a canvas, at most, along its longer side

// The raw map of one column: values in its own units, height and width in cells.
function rawMap(data, column) {
  const stored = data.maps[column];
  if (!stored) return null;
  if (!data.raw) data.raw = {};
  if (data.raw[column]) return data.raw[column];
  const [h, w, low, high, reduced, text] = stored;
  const whole = reduced ? bytes(text) : new Uint16Array(bytes(text).buffer);
  const largest = reduced ? 255 : 65535;
  const values = new Float32Array(whole.length);
  for (let i = 0; i < values.length; i++) values[i] = low + (whole[i] / largest) * (high - low);
  return (data.raw[column] = { h, w, values, reduced: Boolean(reduced) });
}

// The mask at the map's own resolution, 0 to 1: what metrics and figures show.
function maskOf(map, kind) {
  if (kind === "direct") return { ...map, values: map.values.map((value) => Math.min(1, Math.max(0, value))) };
  const values = kind === "signed" ? map.values.map((value) => Math.max(0, value)) : map.values;
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const span = high - low;
  if (!(span > 1e-6 * Math.max(Math.abs(low), Math.abs(high)))) return { ...map, values: new Float32Array(values.length) };
  return { ...map, values: values.map((value) => (value - low) / span) };
}

// A map around zero over its largest magnitude, −1 to 1.
function signedOf(map) {
  let most = 0;
  for (const value of map.values) most = Math.max(most, Math.abs(value));
  return { ...map, values: map.values.map((value) => (most ? value / most : 0)) };
}

// What is shown of a column: values, whether they go below zero, and the range.
function shownMap(data, column, item) {
  const raw = rawMap(data, column);
  if (!raw) return null;
  const kind = index.columns[column].kind;
  if (isDegenerate(column, item) && kind !== "signed") return { ...raw, values: new Float32Array(raw.values.length), signed: false };
  if (kind !== "signed") return { ...maskOf(raw, kind), signed: false };
  const around = signedOf(raw);
  if (state.sign === "both") return { ...around, signed: true };
  const turned = state.sign === "positive" ? 1 : -1;
  return { ...around, values: around.values.map((value) => Math.max(0, turned * value)), signed: false };
}

// The difference of two columns' masks, −1 to 1, on the finer of their grids.
function difference(data, a, b, item) {
  const [first, second] = [a, b].map((column) => {
    const raw = rawMap(data, column);
    if (!raw) return null;
    return isDegenerate(column, item) ? { ...raw, values: new Float32Array(raw.values.length) } : maskOf(raw, index.columns[column].kind);
  });
  if (!first || !second) return null;
  const h = Math.max(first.h, second.h);
  const w = Math.max(first.w, second.w);
  const left = resized(first, h, w, true);
  const right = resized(second, h, w, true);
  return { h, w, values: left.map((value, i) => value - right[i]), signed: true, reduced: first.reduced || second.reduced };
}

// Bilinear without aligned corners, as torch's interpolate, or the nearest cell.
function resized(map, height, width, smooth) {
  const { h, w, values } = map;
  if (h === height && w === width) return values;
  const found = new Float32Array(height * width);
  const [xs, ys] = [places1d(w, width, smooth), places1d(h, height, smooth)];
  for (let y = 0; y < height; y++) {
    const top = ys.before[y] * w;
    const bottom = ys.after[y] * w;
    const down = ys.part[y];
    for (let x = 0; x < width; x++) {
      const [left, right, along] = [xs.before[x], xs.after[x], xs.part[x]];
      const above = values[top + left] + (values[top + right] - values[top + left]) * along;
      const below = values[bottom + left] + (values[bottom + right] - values[bottom + left]) * along;
      found[y * width + x] = above + (below - above) * down;
    }
  }
  return found;
}

function places1d(from, to, smooth) {
  const before = new Int32Array(to);
  const after = new Int32Array(to);
  const part = new Float32Array(to);
  for (let i = 0; i < to; i++) {
    if (!smooth) {
      before[i] = after[i] = Math.min(from - 1, Math.floor((i * from) / to));
      continue;
    }
    const at = Math.max(0, ((i + 0.5) * from) / to - 0.5);
    before[i] = Math.min(from - 1, Math.floor(at));
    after[i] = Math.min(from - 1, before[i] + 1);
    part[i] = at - before[i];
  }
  return { before, after, part };
}

// Draws values in colour; the picture is an image element below the canvas, and opacity and grey are CSS: they cost no drawing.
function drawMap(canvas, map, side = SIDE) {
  const size = canvas.dataset.ratio ? Number(canvas.dataset.ratio) : 1;
  let [width, height] = size >= 1 ? [side, Math.round(side / size)] : [Math.round(side * size), side];
  if (!state.smooth && map) [width, height] = [map.w, map.h];
  canvas.width = width;
  canvas.height = height;
  canvas.classList.toggle("cells", !state.smooth);
  if (!map) return;
  const values = resized(map, height, width, true);
  const colours = lut[map.signed ? AROUND_ZERO : state.palette];
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (Math.abs(value) < state.threshold) continue; // transparent
    const place = 3 * Math.round(255 * Math.min(1, Math.max(0, map.signed ? (value + 1) / 2 : value)));
    pixels[i] = 0xff000000 | (colours[place + 2] << 16) | (colours[place + 1] << 8) | colours[place];
  }
  context.putImageData(image, 0, 0);
}

// A picture with a canvas over it.
function overlaid(data, item, classifier, map, side) {
  const about = index.classifiers[classifier];
  const uri = data.pictures[about.crop];
  const picture = uri ? el("img", { src: uri, alt: "", decoding: "async" }) : el("span", { class: "nopicture" });
  const canvas = el("canvas", { "aria-hidden": "true", "data-ratio": about.size[1] / about.size[0] });
  drawMap(canvas, map, side);
  return el("span", { class: "overlaid" }, picture, canvas);
}

function mapNote(column, item) {
  if (isMissing(column, item)) return "no map";
  if (!isDegenerate(column, item)) return "";
  return reason(column, item) || "shows nothing";
}
