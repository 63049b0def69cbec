// One picture: every method's map and scores, the network's first classes, and each curve with the picture at a step of it.

let drawnPicture = 0;

function stepPicture(by) {
  const found = selection();
  const at = found.indexOf(state.picture);
  const next = at < 0 ? 0 : at + by;
  if (next < 0 || next >= found.length) return say(by > 0 ? "This is the last picture." : "This is the first picture.");
  change({ picture: found[next], step: -1 });
}

async function renderPicture(main) {
  const item = state.picture;
  const found = selection();
  const at = found.indexOf(item);
  const token = ++drawnPicture;
  const heading = el("h2", { class: "picturename", tabindex: "-1", text: pictureName(item) });
  main.append(
    el(
      "div",
      { class: "bar" },
      button("‹ Pictures", () => backToPictures(), { id: "back", title: "Escape" }),
      button("← Previous", () => stepPicture(-1), { id: "previous", disabled: at === 0, title: "Left arrow" }),
      button("Next →", () => stepPicture(1), { id: "next", disabled: at === found.length - 1, title: "Right arrow" }),
      el("span", { class: "count", text: at < 0 ? "not among the pictures that the filters show" : `${at + 1} of ${found.length}` }),
    ),
    heading,
  );
  const place = el("div", { class: "picture" });
  main.append(place);
  const data = await itemData(item);
  if (token !== drawnPicture || state.view !== "picture") return;
  const large = el("div", { class: "frames" });
  const redraw = () => {
    large.replaceChildren(...largeFrames(data, item));
    const scale = place.querySelector(".scale");
    if (scale) scale.replaceWith(scaleBar());
    for (const frame of place.querySelectorAll("td .frame")) {
      const column = Number(frame.dataset.column);
      frame.replaceChildren(overlaid(data, item, index.columns[column].classifier, shownMap(data, column, item), 64));
    }
  };
  place.append(
    el("div", { class: "side" }, large, mapControls(redraw)),
    el("div", { class: "facts" }, answerFacts(data, item), methodTable(data, item)),
    el("section", { class: "curves", id: "curves" }),
  );
  redraw();
  renderCurves(data, item);
  const next = found[at + 1];
  if (at >= 0 && next !== undefined) requestIdle(() => itemData(next));
  say(`${pictureName(item)}, ${columnLabel(state.column)}`);
}

function backToPictures() {
  const { found, size } = pages();
  const at = found.indexOf(state.picture);
  change({ view: "pictures", page: at < 0 ? 0 : Math.floor(at / size) });
}

function largeFrames(data, item) {
  const classifier = index.columns[state.column].classifier;
  const figure = (title, map, note) =>
    el(
      "figure",
      {},
      overlaid(data, item, classifier, map, SIDE),
      el("figcaption", {}, el("span", { text: title }), note ? el("span", { class: "flag", text: note }) : null),
    );
  const uri = data.pictures[index.classifiers[classifier].crop];
  const plain = el(
    "figure",
    {},
    uri
      ? el("img", { src: uri, alt: `Crop of ${index.names[item]} that the network saw` })
      : el("span", { class: "nopicture", text: "The picture could not be read when the report was made." }),
    el("figcaption", { text: "input" }),
  );
  const own = figure(columnLabel(state.column), shownMap(data, state.column, item), mapNote(state.column, item));
  if (state.other < 0) return [plain, own];
  const differs = disagreement(item, state.column, state.other);
  return [
    own,
    figure(columnLabel(state.other), shownMap(data, state.other, item), mapNote(state.other, item)),
    figure(
      `${columnLabel(state.column)} − ${columnLabel(state.other)}`,
      difference(data, state.column, state.other, item),
      Number.isNaN(differs) ? "" : `disagreement 1 − r = ${differs.toFixed(2)}`,
    ),
  ];
}

function answerFacts(data, item) {
  const classifier = index.columns[state.column].classifier;
  const answer = answerOf(classifier, item);
  const facts = el("dl", { class: "answerlist" });
  const add = (term, text, wrong) => facts.append(el("div", {}, el("dt", { text: term }), el("dd", { class: wrong ? "wrong" : "", text })));
  if (severalClassifiers) add("Classifier", classifierName(classifier));
  if (answer.ofClasses) add("Predicted", className(classifier, answer.predicted), answer.mistake);
  else add("Value", written(answer.predicted, 3));
  if (answer.label !== null) add("Label", answer.ofClasses ? className(classifier, answer.label) : written(answer.label, 3));
  add("Explained", `${className(classifier, answer.target)}${answer.probability === null ? "" : `, p = ${answer.probability.toFixed(3)}`}`);
  const first = data.classes[classifier];
  const section = el("section", { class: "answers" }, el("h3", { text: "Answer" }), facts);
  if (first.length) {
    section.append(
      el(
        "table",
        { class: "classes" },
        el("caption", { class: "hidden", text: "Most probable classes" }),
        el(
          "thead",
          { class: "hidden" },
          el(
            "tr",
            {},
            el("th", { scope: "col", text: "Class" }),
            el("th", { scope: "col", text: "Probability" }),
            el("th", { scope: "col", text: "Bar" }),
          ),
        ),
        el(
          "tbody",
          {},
          ...first.map(([value, p]) =>
            el(
              "tr",
              { class: value === answer.label ? "label" : "" },
              el("th", { scope: "row", text: className(classifier, value) }),
              el("td", { class: "number", text: p.toFixed(3) }),
              el(
                "td",
                {},
                svg(
                  "svg",
                  { viewBox: "0 0 100 8", preserveAspectRatio: "none", class: "barline", "aria-hidden": "true" },
                  svg("rect", { width: Math.max(0.5, 100 * p), height: 8 }),
                ),
              ),
            ),
          ),
        ),
      ),
    );
  } else if (answer.ofClasses)
    section.append(
      el("p", { class: "muted", text: "The run is of a version that kept no other classes; a new run keeps the five most probable." }),
    );
  return section;
}

function methodTable(data, item) {
  const ownClassifier = index.columns[state.column].classifier;
  const columns = visibleColumns().filter((column) => state.everyone || index.columns[column].classifier === ownClassifier);
  const label = (column) => (state.everyone ? columnLabel(column) : index.columns[column].method);
  const best = index.metrics.map((metric, number) => {
    const values = columns.filter((column) => !isDegenerate(column, item)).map((column) => score(column, number, item));
    return bestValue(values, metric.better);
  });
  const arrows = { higher: " ↑", lower: " ↓" };
  return el(
    "section",
    {},
    el("h3", { text: "Methods" }),
    severalClassifiers ? check("of all classifiers", state.everyone, (everyone) => change({ everyone }), { id: "everyone" }) : null,
    el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Scores of this picture" },
      el(
        "table",
        { class: "scores methods" },
        el("caption", { class: "hidden", text: "Scores of each method on this picture" }),
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", { scope: "col", text: "map" }),
            el("th", { scope: "col", text: "method" }),
            ...index.metrics.map((metric) =>
              el("th", { scope: "col", class: "number", title: metric.name, text: `${metric.symbol}${arrows[metric.better] || ""}` }),
            ),
          ),
        ),
        el(
          "tbody",
          {},
          ...columns.map((column) =>
            el(
              "tr",
              { class: column === state.column ? "chosen" : "" },
              el("td", {}, el("span", { class: "frame small", "data-column": column })),
              el(
                "th",
                { scope: "row", class: label(column).length > 32 ? "long" : "" },
                button(label(column), () => change({ column }), {
                  class: "link",
                  id: `show-${column}`,
                  "aria-pressed": String(column === state.column),
                }),
                mapNote(column, item) ? el("span", { class: "flag", text: mapNote(column, item) }) : null,
              ),
              ...index.metrics.map((_, number) => {
                const value = score(column, number, item);
                return el(
                  "td",
                  { class: "number" },
                  el("span", { class: best[number] !== null && value === best[number] ? "best" : "", text: written(value) }),
                );
              }),
            ),
          ),
        ),
      ),
    ),
  );
}

function renderCurves(data, item) {
  const section = byId("curves");
  const metrics = index.metrics
    .map((_, number) => number)
    .filter((number) => index.metrics[number].curve && data.curves.some((curve) => curve[1] === number));
  section.append(el("h3", { text: "Curves" }));
  if (!metrics.length) {
    section.append(
      el("p", {
        class: "muted",
        text: "The run follows no curve: add --metric insertion --metric deletion to `xattn explain` to have them.",
      }),
    );
    return;
  }
  section.append(el("div", { class: "pair" }, ...metrics.map((metric) => curvePanel(data, item, metric))));
}

function curvePanel(data, item, metric) {
  const about = index.metrics[metric];
  const ownClassifier = index.columns[state.column].classifier;
  const lines = visibleColumns()
    .filter((column) => index.columns[column].classifier === ownClassifier || column === state.other)
    .map((column) => ({ column, curve: curveOf(data, column, metric) }))
    .filter((line) => line.curve)
    .map(({ column, curve }) => ({
      name: index.columns[column].classifier === ownClassifier ? index.columns[column].method : columnLabel(column),
      place: methodPlace(column),
      strong: column === state.column,
      ...curve,
      note: written(score(column, metric, item)),
    }));
  const own = curveOf(data, state.column, metric);
  const kind = about.curve.insertion ? "insertion" : "deletion";
  const chart = el("div", { class: "chartplace" });
  const canvas = el("canvas", { class: "step", role: "img", "aria-label": `The picture at a step of the ${kind} curve` });
  const told = el("p", { class: "told number" });
  const panel = el(
    "figure",
    { class: "curve" },
    el(
      "figcaption",
      {},
      el("strong", { text: `${kind} · ${columnLabel(state.column)}` }),
      el("span", { class: "muted", text: fillOf(about.curve) }),
    ),
  );
  if (!own) {
    panel.append(lineChart(`Curves of ${about.name}`, lines, { small: true }), legend(lines));
    return panel;
  }
  const steps = own.p.length - 1;
  const start = state.metric === metric && state.step >= 0 ? Math.min(state.step, steps) : Math.round(steps / 5);
  let prepared = null;
  const show = (step) => {
    const mark = { share: own.shares[step], p: own.p[step] };
    chart.replaceChildren(
      lineChart(`${kind} curves of ${lines.length} methods; at step ${step} of ${steps} the probability is ${written(mark.p, 3)}`, lines, {
        mark,
        small: true,
      }),
    );
    told.textContent = `step ${step} of ${steps} · ${(100 * mark.share).toFixed(1)} % of pixels ${about.curve.insertion ? "inserted" : "deleted"} · p = ${written(mark.p, 3)}`;
    if (prepared) drawStep(canvas, prepared, step);
  };
  const scrubber = el("input", {
    type: "range",
    min: 0,
    max: steps,
    step: 1,
    value: start,
    class: "scrubber",
    id: `step-${metric}`,
    "aria-label": `Step of the ${kind} curve`,
  });
  scrubber.addEventListener("input", () => {
    const step = Number(scrubber.value);
    scrubber.setAttribute("aria-valuetext", `step ${step}, probability ${written(own.p[step], 3)}`);
    change(
      { metric, step },
      throttledSteps(metric, () => show(step)),
    );
  });
  const below = el("p", { class: "muted" });
  panel.append(
    el(
      "div",
      { class: "scrub" },
      el("div", { class: "stepplace" }, canvas, below),
      el("div", { class: "chartside" }, chart, scrubber, told, legend(lines)),
    ),
  );
  show(start);
  perturbed(data, item, state.column, metric).then((steps) => {
    if (!steps) {
      canvas.remove();
      below.textContent = REPLACED[about.curve.kind]
        ? `The page cannot draw ${REPLACED[about.curve.kind]}: no picture at each step.`
        : data.pictures.some(Boolean)
        ? "The order of the pixels needs the map as the run made it."
        : "The picture at each step needs the picture, which could not be read when the report was made.";
      return;
    }
    prepared = steps;
    if (steps.approximate)
      below.textContent =
        "Approximate: of this map, which has the picture's size, the report holds cell means. Runs with --save-maps keep such maps in full.";
    drawStep(canvas, steps, Number(scrubber.value));
  });
  return panel;
}

const stepDrawers = new Map();
function throttledSteps(metric, draw) {
  if (!stepDrawers.has(metric)) {
    let asked = null;
    stepDrawers.set(metric, (one) => () => {
      if (asked === null)
        requestAnimationFrame(() => {
          const now = asked;
          asked = null;
          now();
        });
      asked = one;
    });
  }
  return stepDrawers.get(metric)(draw);
}

// Fills that the page does not compute.
const REPLACED = { noise: "noise", "noisy-linear": "what their neighbours suggest" };

function fillOf(curve) {
  const colour = curve.colour === "mean" ? "the mean colour" : "black";
  const blur = { gaussian: "a Gaussian blur", box: "a box blur", ...REPLACED }[curve.kind];
  const what = curve.insertion ? `into ${blur || colour}` : `to ${blur || colour}`;
  return `${curve.insertion ? "pixels inserted" : "pixels deleted"} ${what}, highest of the mask first${curve.lowRes ? ", by cells of the map" : ""}${curve.tolerance ? `; interpolated between evaluated steps (tolerance ${curve.tolerance})` : ""}`;
}
