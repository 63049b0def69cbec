// Line charts of probabilities along curves.

const CHARTS = {
  large: { width: 470, height: 270, left: 46, right: 22, top: 12, bottom: 40 },
  small: { width: 330, height: 220, left: 46, right: 22, top: 10, bottom: 40 },
};

// lines: [{ name, shares, p, place (which decides the colour), strong }]; mark: { share, p } of the scrubber.
function lineChart(title, lines, { mark = null, small = false } = {}) {
  const { width, height, left, right, top, bottom } = CHARTS[small ? "small" : "large"];
  const chosen = lines.some((line) => line.strong);
  const x = (share) => left + share * (width - left - right);
  const y = (p) => height - bottom - p * (height - top - bottom);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title, class: "chart" });
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
    root.append(
      svg("line", { class: "grid", x1: x(0), x2: x(1), y1: y(tick), y2: y(tick) }),
      svg("text", { class: "tick", x: left - 6, y: y(tick) + 3.5, "text-anchor": "end", text: String(tick) }),
      svg("text", { class: "tick", x: x(tick), y: height - bottom + 15, "text-anchor": "middle", text: `${100 * tick} %` }),
    );
  }
  root.append(
    svg("text", { class: "axis", x: (x(0) + x(1)) / 2, y: height - 6, "text-anchor": "middle", text: "pixels changed" }),
    svg("text", {
      class: "axis",
      transform: `translate(11 ${(y(0) + y(1)) / 2}) rotate(-90)`,
      "text-anchor": "middle",
      text: "probability",
    }),
  );
  for (const line of [...lines].sort((a, b) => Boolean(a.strong) - Boolean(b.strong))) {
    let path = "";
    let pen = "M";
    line.p.forEach((p, i) => {
      if (p === null) {
        pen = "M";
        return;
      }
      path += `${pen}${x(line.shares[i]).toFixed(1)} ${y(p).toFixed(1)}`;
      pen = "L";
    });
    const dashed = line.place >= 8 ? " dashed" : "";
    root.append(
      svg("path", { d: path, class: `line colour${(line.place % 8) + 1}${dashed}${line.strong ? " strong" : chosen ? " pale" : ""}` }),
    );
  }
  if (mark) {
    root.append(svg("line", { class: "mark", x1: x(mark.share), x2: x(mark.share), y1: y(0), y2: y(1) }));
    if (mark.p !== null) root.append(svg("circle", { class: "mark", cx: x(mark.share), cy: y(mark.p), r: 4.5 }));
  }
  return root;
}

function legend(lines) {
  const list = el("ul", { class: "legend" });
  for (const line of lines) {
    const swatch = svg(
      "svg",
      { viewBox: "0 0 22 8", "aria-hidden": "true" },
      svg("path", { d: "M1 4L21 4", class: `line colour${(line.place % 8) + 1}${line.place >= 8 ? " dashed" : ""} strong` }),
    );
    list.append(
      el(
        "li",
        { class: line.strong ? "chosen" : "" },
        swatch,
        el("span", { text: line.name }),
        line.note ? el("span", { class: "number", text: line.note }) : null,
      ),
    );
  }
  return list;
}
