// Pictures by the page, each under one method's map, or under those of all methods in a row.

let drawnPage = 0; // only the last page that was asked for is drawn

function renderGallery(main) {
  if (!index.columns.length) {
    main.append(el("h2", { text: "Pictures" }), el("p", { text: "These runs hold neither maps nor scores." }));
    return;
  }
  main.append(
    el("h2", { text: "Pictures" }),
    el(
      "div",
      { class: "panel" },
      filterControls(),
      mapControls(() => redrawMaps(main)),
    ),
    el("div", { class: "bar", id: "pager" }),
    el("div", { id: "cards", class: "cards" }),
    el("div", { class: "bar", id: "pager-below" }),
  );
  renderPage();
}

const inRows = () => state.layout === "all" && visibleColumns().length > 1;

function pages() {
  const found = selection();
  return { found, size: inRows() ? Math.min(state.size, 24) : state.size };
}

function renderPage() {
  const { found, size } = pages();
  const most = Math.max(0, Math.ceil(found.length / size) - 1);
  state.page = Math.min(Math.max(0, Math.floor(state.page)), most);
  const items = found.slice(state.page * size, (state.page + 1) * size);
  byId("pager").replaceChildren(...pager(found.length, most, true));
  byId("pager-below").replaceChildren(...pager(found.length, most, false));
  const cards = byId("cards");
  cards.className = inRows() ? "rows" : "cards";
  cards.replaceChildren(...items.map(inRows() ? rowOf : cardOf));
  if (!items.length) cards.append(el("p", { class: "empty", text: "No picture passes these filters." }));
  say(`${found.length} of ${count} pictures, page ${state.page + 1} of ${most + 1}`);
  const token = ++drawnPage;
  for (const node of cards.children) if (node.dataset.item) loadMaps(node, token);
  const after = found.slice((state.page + 1) * size, (state.page + 2) * size);
  if (after.length) requestIdle(() => token === drawnPage && after.forEach((item) => itemData(item))); // the next page is ready when it is asked for
}

const requestIdle = (work) => (window.requestIdleCallback ? requestIdleCallback(work) : setTimeout(work, 200));

function pager(shown, most, first) {
  const go = (page) => {
    change({ page }, renderPage);
    window.scrollTo({ top: 0 });
  };
  const parts = [
    button("‹ Previous", () => go(state.page - 1), { disabled: state.page === 0, title: "Page up" }),
    el("span", { class: "count", text: `${shown} of ${count} pictures · page ${state.page + 1} of ${most + 1}` }),
    button("Next ›", () => go(state.page + 1), { disabled: state.page >= most, title: "Page down" }),
  ];
  if (first) {
    parts.push(
      el("span", { class: "space" }),
      choice(
        "Show",
        [
          ["one", "one method"],
          ["all", "all methods"],
        ],
        state.layout,
        (layout) => change({ layout, page: 0 }),
        { id: "layout" },
      ),
      choice(
        "Per page",
        ["24", "48", "96"].map((size) => [size, size]),
        String(state.size),
        (size) => change({ size: Number(size), page: 0 }, renderPage),
        { id: "size" },
      ),
    );
  }
  return parts;
}

function open(item, column) {
  change({ view: "picture", picture: item, column, step: -1 });
}

function answerLine(classifier, item) {
  const { target, label, predicted, probability, mistake } = answerOf(classifier, item);
  const line = el("span", { class: "answer" });
  if (predicted !== null) line.append(el("span", { class: mistake ? "wrong" : "", text: className(classifier, predicted) }));
  else if (target !== null) line.append(el("span", { text: className(classifier, target) }));
  if (probability !== null) {
    const own = predicted === null || target === String(predicted); // else the probability is not that of the class which is named
    const text = own ? probability.toFixed(2) : `p(${className(classifier, target)}) = ${probability.toFixed(2)}`;
    line.append(el("span", { class: "muted number", text: own ? ` ${text}` : ` · ${text}` }));
  }
  if (mistake) line.append(el("span", { class: "muted", text: `, not ${className(classifier, label)}` }));
  return line;
}

const shownMetric = () => {
  const ordered = index.metrics.findIndex((metric) => `metric:${metric.name}` === state.order);
  return ordered >= 0 ? ordered : index.metrics.length ? 0 : -1;
};

function cardOf(item) {
  const classifier = index.columns[state.column].classifier;
  const metric = shownMetric();
  const note = mapNote(state.column, item);
  const shown =
    state.order === "apart"
      ? `disagreement ${written(disagreementOf(item, state.column, state.other))}`
      : metric >= 0
        ? `${index.metrics[metric].symbol} ${written(score(state.column, metric, item))}`
        : "";
  return el(
    "button",
    { type: "button", class: "card", "data-item": item, onclick: () => open(item, state.column) },
    el("span", { class: "frame", "data-column": state.column, "data-ratio": ratioOf(state.column) }),
    el("span", { class: "name", text: pictureName(item), title: pictureName(item) }),
    answerLine(classifier, item),
    el("span", { class: "score number", text: shown }),
    note ? el("span", { class: "flag", text: note, title: note }) : null,
  );
}

function ratioOf(column) {
  const { size } = index.classifiers[index.columns[column].classifier];
  return size[1] / size[0];
}

function rowOf(item) {
  const metric = shownMetric();
  const classifier = index.columns[state.column].classifier;
  return el(
    "article",
    { class: "row", "data-item": item },
    el("h3", { class: "name", text: pictureName(item) }),
    answerLine(classifier, item),
    el(
      "div",
      { class: "strip", tabindex: "0", role: "group", "aria-label": `Maps of ${pictureName(item)}` },
      ...visibleColumns().map((column) =>
        el(
          "button",
          {
            type: "button",
            class: `card${column === state.column ? " chosen" : ""}`,
            onclick: () => open(item, column),
            title: columnLabel(column),
          },
          el("span", { class: "frame", "data-column": column }),
          el("span", { class: "name", text: columnLabel(column) }),
          el("span", {
            class: "score number",
            text: metric >= 0 ? `${index.metrics[metric].symbol} ${written(score(column, metric, item))}` : "",
          }),
          mapNote(column, item) ? el("span", { class: "flag", text: mapNote(column, item) }) : null,
        ),
      ),
    ),
  );
}

async function loadMaps(node, token) {
  const data = await itemData(Number(node.dataset.item));
  if (token === drawnPage) drawFrames(node, data);
}

function drawFrames(node, data) {
  const item = Number(node.dataset.item);
  for (const frame of node.querySelectorAll(".frame")) {
    const column = Number(frame.dataset.column);
    const map = state.other >= 0 && !inRows() ? difference(data, column, state.other, item) : shownMap(data, column, item);
    const canvas = frame.querySelector("canvas");
    if (canvas) drawMap(canvas, map, frameSide());
    else frame.replaceChildren(overlaid(data, item, index.columns[column].classifier, map, frameSide()));
  }
}

const frameSide = () => (inRows() ? 128 : 176);

async function redrawMaps(main) {
  const scale = main.querySelector(".scale");
  if (scale) scale.replaceWith(scaleBar());
  const token = drawnPage;
  for (const node of main.querySelectorAll("[data-item]")) {
    const data = await itemData(Number(node.dataset.item));
    if (token !== drawnPage) return;
    drawFrames(node, data);
  }
}
