// The index, and the blocks of pictures, maps and curves, each of which is decoded when it is first looked at.

const index = JSON.parse(byId("index").textContent);
const count = index.names.length;
const fromFolder = document.body.dataset.folder;
const KEPT_BLOCKS = 160; // decoded at once

function bytes(text) {
  const raw = atob(text);
  const found = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
  return found;
}

const scores = new Float32Array(bytes(index.scores).buffer);
const flags = bytes(index.flags);
const apart = bytes(index.disagreement);
const pairCount = (index.columns.length * (index.columns.length - 1)) / 2;

const score = (column, metric, item) => scores[(column * index.metrics.length + metric) * count + item];
const isDegenerate = (column, item) => flags[column * count + item] === 1;
const isMissing = (column, item) => flags[column * count + item] === 2;

function reason(column, item) {
  const number = index.reasons.of[column][item];
  return number === undefined ? "" : index.reasons.texts[number];
}

// 1 − r of two methods' masks, 0 to 2; NaN where one shows nothing.
function disagreement(item, a, b) {
  if (a === b) return 0;
  const [first, second] = a < b ? [a, b] : [b, a];
  const columns = index.columns.length;
  const pair = first * columns - (first * (first + 1)) / 2 + (second - first - 1);
  const coded = apart[item * pairCount + pair];
  return coded === 255 ? NaN : coded / 127;
}

// The mean over the other methods of the classifier that are no controls, or of the one that is compared with.
function disagreementOf(item, column, other) {
  if (other >= 0) return disagreement(item, column, other);
  let sum = 0;
  let seen = 0;
  for (const [number, about] of index.columns.entries()) {
    if (number === column || about.control || about.classifier !== index.columns[column].classifier) continue;
    const found = disagreement(item, column, number);
    if (!Number.isNaN(found)) {
      sum += found;
      seen += 1;
    }
  }
  return seen ? sum / seen : NaN;
}

const severalClassifiers = index.classifiers.length > 1;

function classifierName(number) {
  const { model, head } = index.classifiers[number];
  const short = model.replace(/^[a-z_]+:/, "");
  return short.includes(head) || head === "gap" ? short : `${short} · ${head}`;
}

function columnName(number) {
  const about = index.columns[number];
  if (!severalClassifiers) return about.method;
  const { model, head } = index.classifiers[about.classifier];
  return `${model} · ${head} · ${about.method}`;
}

function columnLabel(number) {
  const about = index.columns[number];
  return severalClassifiers ? `${classifierName(about.classifier)} · ${about.method}` : about.method;
}

// Of a column's method among all methods, for its colour in charts.
const methods = [...new Set(index.columns.map((column) => column.method))];
const methodPlace = (column) => methods.indexOf(index.columns[column].method);

const columnNamed = (name) => index.columns.findIndex((_, number) => columnName(number) === name);

// Where every label of a picture is explained, the label is part of the name.
const repeated = new Set();
{
  const seen = new Set();
  for (const name of index.names) (seen.has(name) ? repeated : seen).add(name);
}
function pictureName(item) {
  const name = index.names[item];
  if (!repeated.has(name)) return name;
  const answers = index.answers.find((answer) => answer.target[item] !== null);
  return `${name} @ ${answers ? answers.target[item] : item}`;
}
const places = new Map();
function pictureNamed(name) {
  if (!places.size) for (let item = 0; item < count; item++) places.set(pictureName(item), item);
  return places.has(name) ? places.get(name) : -1;
}

// A class, or a contrast of classes such as 3 - 0.6*7, by name.
function className(classifier, value) {
  if (value === null || value === undefined) return "–";
  const text = String(value);
  const { classes } = index.classifiers[classifier];
  if (/^\d+$/.test(text)) return classes[text] !== undefined ? classes[text] : `class ${text}`;
  if (!/^[-+*. 0-9e]+$/.test(text)) return text;
  return text.replace(/(?<![\d.])\d+(?![\d.*e])/g, (found) => (classes[found] !== undefined ? classes[found] : found));
}

function answerOf(classifier, item) {
  const answers = index.answers[classifier];
  const [target, label, predicted] = [answers.target[item], answers.label[item], answers.predicted[item]];
  const ofClasses = target !== null && !target.includes("value ");
  return {
    target,
    label,
    predicted,
    probability: answers.probability[item],
    ofClasses,
    mistake: ofClasses && label !== null && predicted !== null ? label !== predicted : null,
  };
}

function written(value, digits = 2) {
  return value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits);
}

// Blocks

const blocks = new Map(); // decoded, the least recently used first
const waiting = new Map();
const arrived = new Set();

window.xattnBlock = (name, content) => {
  const own = name || document.currentScript.previousElementSibling.dataset.block;
  arrived.add(own);
  if (content !== undefined) keepBlock(own, content);
  const waiters = waiting.get(own) || [];
  waiting.delete(own);
  for (const waiter of waiters) waiter();
};

function keepBlock(name, content) {
  blocks.delete(name);
  blocks.set(name, content);
  if (blocks.size > KEPT_BLOCKS) blocks.delete(blocks.keys().next().value);
}

function block(name) {
  const found = blocks.get(name);
  if (found !== undefined) {
    keepBlock(name, found);
    return Promise.resolve(found);
  }
  if (arrived.has(name) && !fromFolder) {
    const content = JSON.parse(document.querySelector(`script[data-block="${name}"]`).textContent);
    keepBlock(name, content);
    return Promise.resolve(content);
  }
  return new Promise((resolve) => {
    const first = !waiting.has(name);
    waiting.set(name, [...(waiting.get(name) || []), () => resolve(block(name))]);
    if (first && fromFolder) {
      const script = el("script", { src: `${fromFolder}/${name}.js` });
      script.addEventListener("load", () => script.remove());
      script.addEventListener("error", () => say(`${fromFolder}/${name}.js is missing: copy the whole folder.`));
      document.head.append(script);
    }
  });
}

async function itemData(item) {
  const found = (await block(`items-${Math.floor(item / index.block)}`))[item % index.block];
  return found;
}
