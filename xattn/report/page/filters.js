// Which pictures are shown, and in which order.

const classesOf = new Map(); // classifier → [[text of the class, name, pictures]]

function classOptions(classifier) {
  if (classesOf.has(classifier)) return classesOf.get(classifier);
  const counts = new Map();
  for (let item = 0; item < count; item++) {
    const { label, predicted, ofClasses } = answerOf(classifier, item);
    if (!ofClasses) continue;
    for (const value of new Set([label, predicted])) if (value !== null) counts.set(value, (counts.get(value) || 0) + 1);
  }
  const found = [...counts].map(([value, n]) => [String(value), className(classifier, value), n]);
  found.sort((a, b) => (a[1] < b[1] ? -1 : 1));
  classesOf.set(classifier, found);
  return found;
}

function orderOptions() {
  const metrics = index.metrics.map((metric) => [
    `metric:${metric.name}`,
    metric.symbol === metric.name ? metric.name : `${metric.name} (${metric.symbol})`,
  ]);
  return [
    ["", "as in the run"],
    ["name", "name"],
    ["probability", "probability of the target"],
    ...metrics,
    ...(index.columns.length > 1 ? [["apart", "disagreement"]] : []),
  ];
}

function keyOf(order, column) {
  if (order === "probability") return (item) => index.answers[index.columns[column].classifier].probability[item] ?? NaN;
  if (order === "apart") return (item) => disagreementOf(item, column, state.other);
  const metric = index.metrics.findIndex((one) => `metric:${one.name}` === order);
  return metric < 0 ? null : (item) => score(column, metric, item);
}

let selectionKey = null;
let selected = [];

// Indices of the pictures that are shown, in order.
function selection() {
  const key = JSON.stringify([
    state.search,
    state.cls,
    state.answers,
    state.flagged,
    state.apart,
    state.order,
    state.falling,
    state.column,
    state.other,
    state.hiddenMethods,
  ]);
  if (key === selectionKey) return selected;
  const classifier = index.columns.length ? index.columns[state.column].classifier : 0;
  const wanted = state.search.toLowerCase();
  const columns = visibleColumns();
  const found = [];
  for (let item = 0; item < count; item++) {
    if (wanted && !index.names[item].toLowerCase().includes(wanted)) continue;
    const answer = answerOf(classifier, item);
    if (state.cls && String(answer.label) !== state.cls && String(answer.predicted) !== state.cls) continue;
    if (state.answers !== "all" && answer.mistake !== (state.answers === "mistakes")) continue;
    if (state.flagged === "this" && !isDegenerate(state.column, item)) continue;
    if (state.flagged === "any" && !columns.some((column) => isDegenerate(column, item))) continue;
    if (state.flagged === "none" && columns.some((column) => isDegenerate(column, item))) continue;
    if (state.apart > 0 && !(disagreementOf(item, state.column, state.other) >= state.apart)) continue;
    found.push(item);
  }
  const turned = state.falling ? -1 : 1;
  if (state.order === "name")
    found.sort((a, b) => -turned * (index.names[a] < index.names[b] ? -1 : index.names[a] > index.names[b] ? 1 : 0));
  else {
    const read = keyOf(state.order, state.column);
    if (read) {
      const values = new Map(found.map((item) => [item, read(item)]));
      found.sort(
        (a, b) =>
          last(values.get(a), values.get(b)) || (Number.isNaN(values.get(a)) ? 0 : turned * (values.get(a) - values.get(b))) || a - b,
      );
    } else if (!state.falling) found.reverse();
  }
  [selectionKey, selected] = [key, found];
  return found;
}

function filterControls() {
  const filtered = (values) => change({ ...values, page: 0 }, renderPage);
  const classifier = index.columns[state.column].classifier;
  const classes = classOptions(classifier);
  const labelled = index.answers[classifier].label.some((label) => label !== null);
  const search = el("input", { type: "search", id: "search", value: state.search, oninput: () => filtered({ search: search.value }) });
  return controlBox(
    "Filter",
    el("label", { class: "field" }, el("span", { text: "Name holds" }), search),
    classes.length
      ? choice(
          "Class",
          [["", "all"], ...classes.map(([value, name, n]) => [value, `${name} (${n})`])],
          state.cls,
          (cls) => filtered({ cls }),
          { id: "class" },
        )
      : null,
    labelled
      ? choice(
          "Answers",
          [
            ["all", "all"],
            ["mistakes", "mistakes"],
            ["right", "right"],
          ],
          state.answers,
          (answers) => filtered({ answers }),
          { id: "answers" },
        )
      : null,
    choice(
      "Degenerate maps",
      [
        ["all", "all"],
        ["this", "of this method"],
        ["any", "of any method"],
        ["none", "none"],
      ],
      state.flagged,
      (flagged) => filtered({ flagged }),
      { id: "flagged" },
    ),
    index.columns.length > 1
      ? slider(
          "Disagreement from",
          [0, 1.5, 0.05],
          state.apart,
          (value) => value.toFixed(2),
          (apart) => filtered({ apart }),
          { id: "apart", title: "1 − r of the masks, on a grid of 14 × 14" },
        )
      : null,
    choice("Order", orderOptions(), state.order, (order) => filtered({ order }), { id: "order" }),
    button(state.falling ? "↓" : "↑", () => change({ falling: !state.falling, page: 0 }), {
      id: "falling",
      "aria-label": state.falling ? "Highest first; turn the order" : "Lowest first; turn the order",
      title: "Turn the order",
    }),
  );
}
