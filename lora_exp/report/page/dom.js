// Elements are built from text alone: nothing of a run is ever read as HTML.
"use strict";

const $ = (id) => document.getElementById(id);

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

const element = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, children);

const shape = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const hidden = (text) => element("span", { class: "unseen" }, text);

// A plain table; `numeric` says which columns are numbers.
function plainTable(header, rows, { numeric = () => false, caption = null } = {}) {
  const side = (column) => (numeric(column) ? "number" : null);
  return element("table", { class: "plain" },
    caption && element("caption", {}, caption),
    element("thead", {}, element("tr", {},
      header.map((name, column) => element("th", { scope: "col", class: side(column) }, name)))),
    element("tbody", {}, rows.map((row) => element("tr", {},
      row.map((cell, column) => element("td", { class: side(column) }, cell))))));
}
