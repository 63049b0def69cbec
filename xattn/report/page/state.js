// What the page shows: one object, whose differences from the defaults are in the address, so that a link leads to any view.

const defaults = {
  view: "table",
  // table
  reference: "",
  sort: "",
  ascending: false,
  hiddenMethods: [],
  hiddenColumns: [],
  // maps
  column: 0,
  other: -1,
  opacity: 0.6,
  palette: "inferno",
  threshold: 0,
  smooth: true,
  grey: true,
  sign: "both",
  // gallery
  search: "",
  cls: "",
  answers: "all",
  flagged: "all",
  apart: 0,
  order: "",
  falling: true,
  page: 0,
  size: 24,
  layout: "one",
  // picture
  picture: -1,
  metric: -1,
  step: -1,
  everyone: false,
};

const state = { ...defaults };

// Columns, pictures and metrics are in the address by their names, which stay when a report is made again.
const named = {
  column: { write: (value) => columnName(value), read: (text) => columnNamed(text) },
  other: { write: (value) => columnName(value), read: (text) => columnNamed(text) },
  picture: { write: (value) => pictureName(value), read: (text) => pictureNamed(text) },
  metric: { write: (value) => index.metrics[value].name, read: (text) => index.metrics.findIndex((metric) => metric.name === text) },
};

function addressOf(wanted) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(wanted)) {
    if (String(value) === String(defaults[key]) || (named[key] && value < 0)) continue;
    if (wanted.view !== "picture" && (key === "picture" || key === "step" || key === "metric")) continue;
    if (Array.isArray(value)) for (const part of value) query.append(key, part);
    else query.set(key, named[key] ? named[key].write(value) : String(value));
  }
  return `#${query}`;
}

function readAddress() {
  const query = new URLSearchParams(location.hash.slice(1));
  Object.assign(state, { ...defaults, hiddenMethods: [], hiddenColumns: [] });
  for (const [key, initial] of Object.entries(defaults)) {
    if (!query.has(key)) continue;
    const text = query.get(key);
    if (named[key]) state[key] = named[key].read(text);
    else if (Array.isArray(initial)) state[key] = query.getAll(key);
    else if (typeof initial === "number") state[key] = Number.isFinite(Number(text)) ? Number(text) : initial;
    else if (typeof initial === "boolean") state[key] = text === "true";
    else state[key] = text;
  }
  if (!["table", "pictures", "picture", "about"].includes(state.view)) state.view = defaults.view;
  if (state.column < 0 || state.column >= index.columns.length) state.column = defaults.column;
  if (state.other >= index.columns.length) state.other = -1;
  if (state.view === "picture" && state.picture < 0) state.view = "pictures";
  state.opacity = Math.min(1, Math.max(0, state.opacity));
  state.threshold = Math.min(1, Math.max(0, state.threshold));
  if (![24, 48, 96].includes(state.size)) state.size = defaults.size;
  if (!index.palettes[state.palette]) state.palette = defaults.palette;
}

// Changes of the view are steps of the browser's history; changes within one are not.
function change(values, redraw) {
  const stepped = "view" in values && values.view !== state.view;
  Object.assign(state, values);
  const address = addressOf(state);
  try {
    if (stepped) history.pushState(null, "", address);
    else history.replaceState(null, "", address);
  } catch {
    location.hash = address; // a browser that allows no history in files
  }
  if (redraw) redraw();
  else render();
}

function remembered(key, value) {
  try {
    if (value !== undefined) localStorage.setItem(`xattn-report-${key}`, value);
    return localStorage.getItem(`xattn-report-${key}`);
  } catch {
    return null; // storage is off
  }
}
