// Elements. Text of others enters by textContent and setAttribute alone; nothing here or elsewhere parses HTML.

const byId = (id) => document.getElementById(id);

function el(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

function svg(tag, properties, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function say(text) {
  if (byId("said").textContent !== text) byId("said").textContent = text;
}

// A button whose label and key are shown and read.
function button(text, onclick, properties) {
  return el("button", { type: "button", text, onclick, ...properties });
}

function choice(label, options, value, onchange, properties) {
  const select = el("select", { onchange: () => onchange(select.value), ...properties });
  for (const option of options) {
    if (option.group) {
      const group = el("optgroup", { label: option.group });
      for (const inner of option.options) group.append(el("option", { value: inner[0], text: inner[1] }));
      select.append(group);
    } else select.append(el("option", { value: option[0], text: option[1] }));
  }
  select.value = value;
  return el("label", { class: "field" }, el("span", { text: label }), select);
}

function check(label, checked, onchange, properties) {
  const box = el("input", { type: "checkbox", checked, onchange: () => onchange(box.checked), ...properties });
  return el("label", { class: "check" }, box, el("span", { text: label }));
}

function slider(label, range, value, written, oninput, properties) {
  const output = el("output", { text: written(value) });
  const input = el("input", { type: "range", min: range[0], max: range[1], step: range[2], value, ...properties });
  input.setAttribute("aria-valuetext", written(value));
  input.addEventListener("input", () => {
    output.textContent = written(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
    oninput(Number(input.value));
  });
  return el("label", { class: "field range" }, el("span", { text: label }), input, output);
}

function copyText(text, done) {
  const fallback = () => {
    const area = el("textarea", { class: "hidden", value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    done();
  };
  if (navigator.clipboard && window.isSecureContext) navigator.clipboard.writeText(text).then(done, fallback);
  else fallback();
}
