// Views, keys, theme.

const views = { table: renderTable, pictures: renderGallery, picture: renderPicture, about: renderAbout };

function render() {
  const main = byId("main");
  const focused = document.activeElement && document.activeElement.id;
  drawnPage += 1;
  drawnPicture += 1;
  main.replaceChildren();
  applyStyle();
  for (const one of document.querySelectorAll("nav button")) {
    const current = one.dataset.view === state.view || (one.dataset.view === "pictures" && state.view === "picture");
    if (current) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  document.body.dataset.view = state.view;
  views[state.view](main);
  if (focused && focused !== "main" && byId(focused)) byId(focused).focus({ preventScroll: true });
}

function show(view) {
  change({ view });
  byId("main").focus({ preventScroll: true });
  window.scrollTo({ top: 0 });
}

function nextColumn(by) {
  const columns = visibleColumns();
  const at = columns.indexOf(state.column);
  const next = columns[(at + by + columns.length) % columns.length];
  if (next !== undefined) change({ column: next });
}

const keys = {
  Escape: () => state.view === "picture" && backToPictures(),
  ArrowLeft: () => state.view === "picture" && stepPicture(-1),
  ArrowRight: () => state.view === "picture" && stepPicture(1),
  ArrowUp: () => state.view === "picture" && nextColumn(-1),
  ArrowDown: () => state.view === "picture" && nextColumn(1),
  PageDown: () => state.view === "pictures" && change({ page: state.page + 1 }, renderPage),
  PageUp: () => state.view === "pictures" && change({ page: state.page - 1 }, renderPage),
  t: () => show("table"),
  p: () => show("pictures"),
  s: () => change({ smooth: !state.smooth }),
  g: () => change({ grey: !state.grey }),
  "/": () => {
    if (state.view !== "pictures") show("pictures");
    byId("search").focus();
  },
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (typing && (event.key !== "Escape" || state.view !== "picture")) return;
  const digit = /^[1-9]$/.test(event.key) && state.view !== "table";
  if (digit) {
    const column = visibleColumns()[Number(event.key) - 1];
    if (column !== undefined) change({ column });
  } else if (keys[event.key]) {
    if (event.key.startsWith("Arrow") && (state.view !== "picture" || event.target.closest(".scroll"))) return;
    if (keys[event.key]() !== false) event.preventDefault();
  }
});

for (const one of document.querySelectorAll("nav button")) one.addEventListener("click", () => show(one.dataset.view));
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});

const theme = byId("theme");
function applyTheme(value) {
  theme.value = ["light", "dark"].includes(value) ? value : "auto";
  document.documentElement.dataset.theme = theme.value;
}
applyTheme(remembered("theme"));
theme.addEventListener("change", () => {
  applyTheme(theme.value);
  remembered("theme", theme.value);
});

window.addEventListener("popstate", () => {
  readAddress();
  render();
});

readAddress();
render();
performance.mark("xattn-first-view");
