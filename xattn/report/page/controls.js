// Controls of what maps look like, which the gallery and a picture share.

const visibleColumns = () =>
  index.columns.map((_, number) => number).filter((number) => !state.hiddenMethods.includes(index.columns[number].method));

function columnOptions(columns) {
  if (!severalClassifiers) return columns.map((number) => [String(number), index.columns[number].method]);
  return index.classifiers
    .map((_, classifier) => ({
      group: classifierName(classifier),
      options: columns
        .filter((number) => index.columns[number].classifier === classifier)
        .map((number) => [String(number), columnLabel(number)]),
    }))
    .filter((group) => group.options.length);
}

function applyStyle() {
  document.documentElement.style.setProperty("--opacity", String(state.opacity));
  document.documentElement.style.setProperty("--grey", state.grey ? "1" : "0");
}

// redraw draws the maps that are on the page again; nothing is laid out anew.
function mapControls(redraw) {
  const drawn = (values) => change(values, throttled(redraw));
  const styled = (values) => change(values, applyStyle);
  const percent = (value) => `${Math.round(100 * value)} %`;
  const anySigned = index.columns.some((column) => column.kind === "signed");
  const method = choice("Method", columnOptions(visibleColumns()), String(state.column), (value) => change({ column: Number(value) }), {
    id: "method",
  });
  const others = [["-1", "nothing"], ...columnOptions(visibleColumns())];
  const other = choice("Minus", others, String(state.other), (value) => change({ other: Number(value) }), { id: "other" });
  const palettes = Object.keys(index.palettes)
    .filter((name) => name !== AROUND_ZERO)
    .map((name) => [name, name]);
  return controlBox(
    "Maps",
    method,
    other,
    slider("Opacity", [0, 1, 0.05], state.opacity, percent, (opacity) => styled({ opacity }), { id: "opacity" }),
    slider(
      "Threshold",
      [0, 1, 0.01],
      state.threshold,
      (value) => value.toFixed(2),
      (threshold) => drawn({ threshold }),
      { id: "threshold" },
    ),
    choice("Colours", palettes, state.palette, (palette) => drawn({ palette }), { id: "palette" }),
    anySigned
      ? choice(
          "Signed maps",
          [
            ["both", "for and against"],
            ["positive", "for the target"],
            ["negative", "against it"],
          ],
          state.sign,
          (sign) => drawn({ sign }),
          { id: "sign" },
        )
      : null,
    check("smooth", state.smooth, (smooth) => drawn({ smooth }), { id: "smooth" }),
    check("grey picture", state.grey, (grey) => styled({ grey }), { id: "grey" }),
    scaleBar(),
  );
}

// A group of controls, closed at first where the window is narrow.
const closed = new Map();
function controlBox(title, ...children) {
  if (!closed.has(title)) closed.set(title, window.innerWidth < 700);
  const box = el(
    "details",
    { class: "controls", open: !closed.get(title) },
    el("summary", { text: title }),
    el("div", { class: "group", role: "group", "aria-label": title }, ...children),
  );
  box.addEventListener("toggle", () => closed.set(title, !box.open));
  return box;
}

function scaleBar() {
  const canvas = el("canvas", { width: 256, height: 1, "aria-hidden": "true" });
  const differing = state.other >= 0;
  const signed = differing || (index.columns[state.column].kind === "signed" && state.sign === "both");
  const colours = lut[signed ? AROUND_ZERO : state.palette];
  const context = canvas.getContext("2d");
  const image = context.createImageData(256, 1);
  for (let i = 0; i < 256; i++) image.data.set([colours[3 * i], colours[3 * i + 1], colours[3 * i + 2], 255], 4 * i);
  context.putImageData(image, 0, 0);
  const ends = differing
    ? ["−1", "difference of masks", "1"]
    : signed
      ? ["against", "over its largest magnitude", "for"]
      : ["0", "mask, within each map", "1"];
  return el("span", { class: "scale" }, canvas, el("span", { class: "ends" }, ...ends.map((text) => el("span", { text }))));
}

const throttled = (() => {
  let asked = null;
  return (draw) => () => {
    if (asked === null)
      requestAnimationFrame(() => {
        const now = asked;
        asked = null;
        now();
      });
    asked = draw;
  };
})();
