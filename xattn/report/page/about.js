// What was run, what failed, and what the report does not hold.

function renderAbout(main) {
  const list = (rows) =>
    el(
      "dl",
      {},
      ...rows
        .filter((row) => row[1] !== null && row[1] !== "")
        .map(([term, text]) => el("div", {}, el("dt", { text: term }), el("dd", { text: String(text) }))),
    );
  main.append(el("h2", { text: "About this run" }));
  for (const run of index.runs) {
    main.append(
      el(
        "section",
        {},
        el("h3", { text: run.folder }),
        list([
          ["Pictures", run.images],
          ["Target", run.target],
          ["State", run.finished ? "finished" : "not finished: the pictures done so far"],
          ["xattn", run.xattn],
          ["torch", run.torch],
          ["Device", run.device],
          ["Seed", run.seed],
        ]),
      ),
    );
  }
  main.append(
    el(
      "section",
      {},
      el("h3", { text: "Classifiers" }),
      ...index.classifiers.map((one) =>
        el(
          "div",
          { class: "about" },
          el("h4", { text: `${one.model} · ${one.head}` }),
          list([
            ["Preprocessing", one.preprocessing],
            ["Stage", one.stage],
            ["Weights", one.weights],
          ]),
        ),
      ),
    ),
  );
  main.append(
    el(
      "section",
      {},
      el("h3", { text: "Methods" }),
      el("ul", {}, ...[...new Set(index.columns.map((column) => column.method))].map((text) => el("li", { text }))),
    ),
  );
  main.append(
    el(
      "section",
      {},
      el("h3", { text: "Metrics" }),
      el(
        "ul",
        {},
        ...index.metrics.map((metric) =>
          el("li", {
            text: `${metric.name}${metric.symbol === metric.name ? "" : ` (${metric.symbol})`}${metric.better ? `, ${metric.better} is better` : ""}`,
          }),
        ),
      ),
    ),
  );
  if (index.failed.length)
    main.append(
      el(
        "section",
        {},
        el("h3", { text: "Pictures that failed" }),
        el("ul", {}, ...index.failed.map(([name, reason]) => el("li", { text: `${name}: ${reason}` }))),
      ),
    );
  const missing = el("ul", {});
  const lacks = el("section", {}, el("h3", { text: "Not in this report" }), missing);
  if (!index.wholeMaps)
    missing.append(
      el("li", { text: "Maps of the picture's size are reduced to 64 cells per side: in full they would make the file too large." }),
    );
  if (
    index.classifiers.length &&
    index.columns.some((column, number) => Array.from({ length: count }, (_, item) => item).every((item) => isMissing(number, item)))
  )
    missing.append(el("li", { text: "Some methods have no map." }));
  block("missing").then((found) => {
    for (const [why, pictures] of found) missing.append(el("li", { text: `${pictures} pictures are not shown: ${why}.` }));
    if (missing.children.length) main.insertBefore(lacks, main.querySelector(".keys"));
  });
  const keys = [
    ["← →", "the picture before, the next picture"],
    ["Page up, Page down", "the page before, the next page"],
    ["↑ ↓ or 1 … 9", "another method"],
    ["t, p", "table, pictures"],
    ["s, g", "smooth or cells, grey or coloured picture"],
    ["/", "search by name"],
    ["Escape", "from a picture back to the pictures"],
  ];
  main.append(
    el("section", { class: "keys" }, el("h3", { text: "Keys" }), list(keys)),
    el("p", { class: "muted", text: `Made by xattn ${index.version}. The address holds the view: copy it to share it.` }),
  );
}
