// The table of `xattn compare`: the same cells, which sort, hide, and compare with a reference.

const SIGNIFICANT = 0.05;
const names = ["model", "head", "method"];

const shownRows = () => {
  const rows = index.table.rows.map((row, number) => ({ ...row, number })).filter((row) => !state.hiddenMethods.includes(row.names[2]));
  const place = index.table.columns.findIndex((column) => column.name === state.sort);
  const byName = names.indexOf(state.sort);
  const turned = state.ascending ? 1 : -1;
  if (place >= 0) rows.sort((a, b) => last(a.values[place], b.values[place]) || turned * (a.values[place] - b.values[place]));
  else if (byName >= 0) rows.sort((a, b) => turned * (a.names[byName] < b.names[byName] ? -1 : a.names[byName] > b.names[byName] ? 1 : 0));
  return rows;
};

// Missing values come last, whichever way is sorted.
const last = (a, b) =>
  (a === null || Number.isNaN(a) ? 1 : 0) - (b === null || Number.isNaN(b) ? 1 : 0) || (a === null && b === null ? 0 : 0);

const shownColumns = () =>
  index.table.columns.map((_, number) => number).filter((number) => !state.hiddenColumns.includes(index.table.columns[number].name));

const shownNames = () =>
  names.map((_, number) => number).filter((number) => number === 2 || new Set(index.table.rows.map((row) => row.names[number])).size > 1);

function renderTable(main) {
  if (!index.table) {
    main.append(
      el("h2", { text: "Table" }),
      el("p", { text: "These runs hold no scores: name metrics, `xattn explain --metric insertion …`, to have a table." }),
    );
    return;
  }
  const methods = [...new Set(index.table.rows.map((row) => row.names[2]))];
  const references = [["", "none"], ...Object.keys(index.table.references).map((name) => [name, name])];
  const toggled = (key, name) => (on) => change({ [key]: on ? state[key].filter((other) => other !== name) : [...state[key], name] });
  main.append(
    el("h2", { text: "Table" }),
    el(
      "div",
      { class: "bar" },
      references.length > 1
        ? choice("Test against", references, state.reference, (reference) => change({ reference }), { id: "reference" })
        : null,
      el(
        "details",
        { class: "menu" },
        el("summary", { text: "Methods and columns" }),
        el(
          "fieldset",
          {},
          el("legend", { text: "Methods" }),
          ...methods.map((name) => check(name, !state.hiddenMethods.includes(name), toggled("hiddenMethods", name))),
        ),
        el(
          "fieldset",
          {},
          el("legend", { text: "Columns" }),
          ...index.table.columns.map((column) =>
            check(column.header, !state.hiddenColumns.includes(column.name), toggled("hiddenColumns", column.name)),
          ),
        ),
      ),
      button("Copy as LaTeX", () => copyText(latexTable(), () => say("The table is in the clipboard, as LaTeX for booktabs.")), {
        id: "latex",
      }),
      button("Copy as CSV", () => copyText(csvTable(), () => say("The table is in the clipboard, as CSV.")), { id: "csv" }),
    ),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of methods and metrics" }, tableOf()),
    notesOf(),
    meanCharts(),
  );
  reopen(main);
}

// A menu stays open when what it changes is drawn.
let menuOpen = false;
function reopen(main) {
  const menu = main.querySelector("details.menu");
  menu.open = menuOpen;
  menu.addEventListener("toggle", () => (menuOpen = menu.open));
}

function tableOf() {
  const [rows, columns, shown] = [shownRows(), shownColumns(), shownNames()];
  const against = index.table.references[state.reference];
  const best = bestOf(rows, columns);
  const head = el(
    "tr",
    {},
    ...shown.map((number) => header(names[number], names[number], false)),
    ...columns.map((number) => header(index.table.columns[number].name, headerText(index.table.columns[number]), true)),
  );
  const body = rows.map((row) =>
    el(
      "tr",
      { class: row.names[2] === state.reference ? "reference" : "" },
      ...shown.map((number) =>
        number === 2
          ? el(
              "th",
              { scope: "row", class: row.names[2].length > 32 ? "long" : "" },
              row.place >= 0
                ? button(row.names[2], () => change({ view: "pictures", column: row.place, page: 0 }), {
                    class: "link",
                    title: "Look at its maps",
                  })
                : el("span", { text: row.names[2] }),
            )
          : el("td", { text: row.names[number] }),
      ),
      ...columns.map((number, place) => cellOf(row, number, against, best.get(`${row.names[0]}\n${row.names[1]}`)[place])),
    ),
  );
  return el(
    "table",
    { class: "scores", id: "scores" },
    el("caption", { class: "hidden", text: "Means over pictures with 95 % intervals" }),
    el("thead", {}, head),
    el("tbody", {}, ...body),
  );
}

const columnTexts = { degenerate_share: "degenerate" };
const headerText = (column) => columnTexts[column.name] || column.header;

function header(name, text, number) {
  const sorted = state.sort === name ? (state.ascending ? "ascending" : "descending") : "none";
  const sort = () => change({ sort: name, ascending: state.sort === name ? !state.ascending : !number });
  return el(
    "th",
    { scope: "col", "aria-sort": sorted, class: number ? "number" : "" },
    button(
      text,
      () => {
        sort();
        document.querySelector(`[data-sort="${CSS.escape(name)}"]`).focus();
      },
      { "data-sort": name, title: name },
    ),
  );
}

// The best values of each classifier's rows that are shown, by column; null where no direction is known or all are the same.
function bestOf(rows, columns) {
  const groups = new Map();
  for (const row of rows) {
    const key = `${row.names[0]}\n${row.names[1]}`;
    groups.set(key, [...(groups.get(key) || []), row]);
  }
  for (const [key, group] of groups)
    groups.set(
      key,
      columns.map((number) =>
        bestValue(
          group.map((row) => row.values[number]),
          index.table.columns[number].better,
        ),
      ),
    );
  return groups;
}

function bestValue(values, better) {
  const known = values.filter((value) => value !== null && !Number.isNaN(value));
  if (!better || new Set(known).size < 2) return null;
  return better === "higher" ? Math.max(...known) : Math.min(...known);
}

function cellOf(row, number, against, best) {
  const [mean, interval] = row.cells[number].split(" [");
  const value = row.values[number];
  const cell = el("td", { class: "number" }, el("span", { class: value !== null && value === best ? "best" : "", text: mean }));
  if (interval) cell.append(el("span", { class: "interval", text: `[${interval}` }));
  const difference = against && number < against.difference[0].length ? against.difference[row.number][number] : null;
  if (difference !== null && row.names[2] !== state.reference) {
    const p = against.p[row.number][number];
    const better = difference > 0 === (index.table.columns[number].better === "higher");
    const significant = p !== null && p < SIGNIFICANT;
    const mark = !significant || difference === 0 ? "≈" : better ? "▲" : "▼";
    const meaning = mark === "≈" ? "no significant difference from" : `${better ? "better" : "worse"} than`;
    cell.append(
      el(
        "span",
        {
          class: `difference ${mark === "≈" ? "" : better ? "better" : "worse"}`,
          title: `${meaning} ${state.reference}${p === null ? "" : `, p = ${p.toPrecision(2)}`}`,
        },
        el("span", { "aria-hidden": "true", text: mark }),
        el("span", { class: "hidden", text: `${meaning} ${state.reference}: ` }),
        el("span", { text: ` ${difference > 0 ? "+" : difference < 0 ? "−" : ""}${Math.abs(difference).toFixed(2)}` }),
      ),
    );
  }
  return cell;
}

function currentNotes() {
  const against = index.table.references[state.reference];
  return against ? against.notes : index.table.notes;
}

function notesOf() {
  const legends = [
    severalClassifiers ? "Bold: the best mean of each classifier, of the rows shown." : "Bold: the best mean of the rows shown.",
  ];
  if (index.table.references[state.reference])
    legends.push(
      `▲ better, ▼ worse than ${state.reference}; ≈ no significant difference; beside it the mean difference on the same pictures.`,
    );
  return el("ul", { class: "notes" }, ...[...legends, ...currentNotes()].map((text) => el("li", { text })));
}

// Cells and notes are those of `xattn compare --format latex`; needs booktabs. Rows stand below the name of their network.
function latexTable() {
  const [rows, columns] = [shownRows(), shownColumns()];
  const against = index.table.references[state.reference];
  const line = (cells) => `${[0, ...columns.map((number) => number + 1)].map((place) => cells[place]).join(" & ")} \\\\`;
  const lines = [];
  rows.forEach((row, place) => {
    if (!place || row.network !== rows[place - 1].network) {
      if (place) lines.push("\\addlinespace");
      lines.push(`\\multicolumn{${columns.length + 1}}{@{}l}{\\textit{${row.network}}} \\\\`);
    }
    lines.push(line(against ? against.latex[row.number] : row.latex));
  });
  return [
    `\\begin{tabular}{@{}l${"r".repeat(columns.length)}@{}}`,
    "\\toprule",
    line(index.table.latexHeader),
    "\\midrule",
    ...lines,
    "\\bottomrule",
    "\\end{tabular}",
    ...currentNotes().map((note) => `% ${note}`),
    "",
  ].join("\n");
}

function csvTable() {
  const [rows, columns] = [shownRows(), shownColumns()];
  const quoted = (value) => {
    const text = value === null ? "" : String(value);
    const neutral = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(neutral) ? `"${neutral.replaceAll('"', '""')}"` : neutral;
  };
  const lines = [
    [...names, ...columns.map((number) => index.table.columns[number].name)],
    ...rows.map((row) => [...row.names, ...columns.map((number) => row.values[number])]),
  ];
  return `${lines.map((cells) => cells.map(quoted).join(",")).join("\n")}\n`;
}

// The mean of each curve over the pictures, a chart for each classifier and metric.
function meanCharts() {
  const section = el("section", { class: "charts" });
  for (const classifier of index.classifiers.keys())
    for (const [number, metric] of index.metrics.entries()) {
      const lines = index.means
        .filter((mean) => mean.metric === number && index.columns[mean.column].classifier === classifier)
        .map((mean) => ({ ...mean, method: index.columns[mean.column].method }))
        .filter((mean) => !state.hiddenMethods.includes(mean.method))
        .map((mean) => ({ name: mean.method, shares: index.shares[mean.shares], p: mean.p, place: methodPlace(mean.column) }));
      if (!lines.length) continue;
      const title = `Mean ${metric.curve && metric.curve.insertion ? "insertion" : "deletion"} curve`;
      const about = severalClassifiers ? `${classifierName(classifier)} · ${metric.name}` : metric.name;
      const caption = el("figcaption", {}, el("h3", { text: title }), el("span", { class: "muted", text: about }));
      section.append(el("figure", {}, caption, lineChart(`${title} of ${about}, ${lines.length} methods`, lines), legend(lines)));
    }
  return section;
}
