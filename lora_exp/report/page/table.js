// The table of groups: sorted by its headings, narrowed by words, each row a curve or its details.
"use strict";

const DRAWN = 300; // rows, until more are asked for
const compact = matchMedia("(max-width: 960px)"); // all keys in one column

class GroupsTable {
  constructor(container, { toggle, open }) {
    Object.assign(this, { container, toggle, open, sort: null, all: false });
  }

  draw(page) {
    this.page = page;
    const focus = this.focused();
    const columns = this.columns(page);
    if (!columns.some((column) => column.name === this.sort?.name)) this.sort = null;
    const rows = this.sorted(page.rows, columns);
    const drawn = this.all ? rows : rows.slice(0, DRAWN);
    const heading = element("tr", {}, columns.map((column) => this.heading(column)));
    this.container.replaceChildren(element("table", { class: "groups" },
      element("caption", { class: "unseen" },
        "Groups of runs that differ in their seed alone. Enter opens a row, arrows move."),
      element("thead", {}, heading),
      element("tbody", {}, drawn.map((row) => this.row(row, columns)))));
    if (drawn.length < rows.length) {
      this.container.append(element("button", { type: "button", class: "more",
        onclick: () => { this.all = true; this.draw(this.page); } },
      `Show all ${count(rows.length, "row")}`));
    }
    this.keepWidths(heading, columns);
    if (focus) this.container.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
  }

  focused() {
    return this.container.contains(document.activeElement)
      ? document.activeElement.dataset.focus : null;
  }

  // Where one was, if new content has replaced what the browser would return to.
  return(group) {
    if (this.container.contains(document.activeElement)) return;
    this.container.querySelector(`[data-focus^="row ${CSS.escape(group)} "]`)?.focus();
  }

  columns({ content, keys, metrics, nameOf }) {
    const group = (row) => content.groups[row.group];
    const metric = (row) => content.metrics[row.metric];
    const numeric = (name, value, tell, extra = {}) => ({ name, value, tell, numeric: true, ...extra });
    return [
      { name: "curve", control: true },
      ...(compact.matches
        ? [{ name: "group", side: "name", value: (row) => nameOf(row.group), tell: (row) => nameOf(row.group) }]
        : keys.map((key) => this.label(content, key))),
      ...(metrics.length > 1 && !compact.matches
        ? [{ name: "metric", side: "label", value: (row) => row.metric ?? "", tell: (row) => row.metric ?? NONE }]
        : []),
      numeric(metrics.length === 1 ? metrics[0] : "mean", (row) => row.summary?.mean,
        (row) => spread(row.summary, metric(row)), { result: true }),
      numeric("median", (row) => row.summary?.median, (row) => number(row.summary?.median, metric(row))),
      numeric("seeds", (row) => row.summary?.seeds ?? 0, (row) => String(row.summary?.seeds ?? 0)),
      numeric("parameters", (row) => group(row).parameters, (row) => millions(group(row).parameters)),
      numeric("time", (row) => group(row).seconds, (row) => duration(group(row).seconds)),
      numeric("memory", (row) => group(row).memory, (row) => size(group(row).memory)),
      ...(content.groups.some((one) => one.unfinished.length)
        ? [{ name: "unfinished", states: true, value: (row) => group(row).unfinished.join(" "),
          tell: (row) => group(row).unfinished.map((text) => stateBadge(text.split(" ")[1], text)) }]
        : []),
    ];
  }

  label(content, key) {
    const at = content.keys.indexOf(key);
    const values = content.rows.map((row) => row.labels[at]).filter((one) => one !== "");
    return { name: key, side: "label", value: (row) => row.labels[at], tell: (row) => told(row.labels[at]),
      numeric: values.length > 0 && values.every((one) => typeof one === "number") };
  }

  heading(column) {
    const side = column.numeric ? "number" : null;
    if (column.control) return element("th", { scope: "col" }, hidden("Curve"));
    const sorted = this.sort?.name === column.name;
    const order = sorted ? (this.sort.descending ? "descending" : "ascending") : "none";
    const arrow = { none: "\u2195", ascending: "\u2191", descending: "\u2193" }[order];
    return element("th", { scope: "col", class: side, "aria-sort": order },
      element("button", { type: "button", "data-focus": `sort ${column.name}`,
        onclick: () => this.sortBy(column) },
      column.name, element("span", { class: "arrow", "aria-hidden": "true" }, arrow)));
  }

  sortBy(column) {
    const again = this.sort?.name === column.name;
    this.sort = { name: column.name, descending: again ? !this.sort.descending : !!column.result };
    this.draw(this.page);
  }

  sorted(rows, columns) {
    const column = columns.find(({ name }) => name === this.sort?.name);
    if (!column) return rows;
    const sign = this.sort.descending ? -1 : 1;
    const missing = (value) => value == null || value === "";
    return [...rows].sort((one, other) => {
      const [a, b] = [column.value(one), column.value(other)];
      if (missing(a) || missing(b)) return missing(a) - missing(b); // at the end either way
      if (typeof a === "number" && typeof b === "number") return sign * (a - b);
      return sign * String(a).localeCompare(String(b), "en", { numeric: true });
    });
  }

  row(row, columns) {
    const group = this.page.content.groups[row.group];
    return element("tr", { tabindex: 0, "data-focus": `row ${group.name} ${row.metric}`,
      onclick: (event) => { if (!event.target.closest("label")) this.open(row.group); },
      onkeydown: (event) => this.key(event, row) },
    columns.map((column) => this.cell(row, group, column)));
  }

  key(event, row) {
    if (event.target !== event.currentTarget) return;
    const move = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (event.key === "Enter") this.open(row.group);
    else if (event.key === " ") this.toggle(row.group);
    else if (move) event.currentTarget[move]?.focus();
    else return;
    event.preventDefault();
  }

  cell(row, group, column) {
    if (column.control) return element("td", { class: "control" }, this.control(group, row.group));
    const text = column.tell(row);
    if (column.result) {
      return element("td", { class: "number" },
        row.best ? element("strong", {}, text, hidden(", significantly best")) : text,
        compact.matches && this.page.metrics.length > 1 && element("span", { class: "under" }, row.metric ?? ""));
    }
    const side = column.numeric ? "number" : column.side;
    return element("td", { class: side, title: column.side ? text : null }, text);
  }

  control(group, index) {
    const slot = this.page.shown.get(group.name);
    return element("label", { class: "toggle" },
      element("input", { type: "checkbox", checked: slot != null, disabled: !group.curves.length,
        "data-focus": `curve ${group.name}`, onchange: () => this.toggle(index) }),
      hidden(`Curve of ${this.page.nameOf(index)}`),
      slot == null ? element("span", { class: "swatch" }) : swatch(look(slot)));
  }

  // Columns never get narrower than they were: nothing jumps while one filters.
  keepWidths(heading, columns) {
    const names = columns.map(({ name }) => name).join(" ");
    const room = this.container.clientWidth;
    if (this.widths?.names !== names || this.widths.room !== room) {
      this.widths = { names, room, of: [...heading.children].map((th) => th.offsetWidth) };
    }
    this.widths.of.forEach((width, at) => { heading.children[at].style.minWidth = `${width}px`; });
  }
}
