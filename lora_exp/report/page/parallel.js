// Parallel coordinates: an axis for each key that varies, a line for each group, the metric last.
"use strict";

const LINES = 1500; // more would be a grey wall, and slow
const HEIGHT = 300, TOP = 34, BOTTOM = 14, AXIS_ROOM = 108, ORDINAL = 12;

class Parallel {
  constructor(container) {
    this.lines = shape("g");
    this.axes = shape("g");
    this.svg = shape("svg", { class: "parallel", role: "img" }, this.lines, this.axes);
    this.told = element("p", { class: "quiet told", "aria-hidden": "true" });
    this.scroll = element("div", { class: "scroll", tabindex: 0, role: "region",
      "aria-label": "Parallel coordinates" }, this.svg);
    this.caption = element("figcaption");
    this.figure = element("figure", {}, this.caption, this.scroll, this.told);
    container.append(this.figure);
    new ResizeObserver(() => { if (this.page) this.draw(this.page); }).observe(this.scroll);
  }

  draw(page) {
    this.page = page;
    const { content, measured, keys, shown, seriesLook } = page;
    const nameOf = namer(page.measuredRows);
    const metric = content.metrics[measured.metric] ?? unknown;
    const rows = page.measuredRows.filter((row) => row.summary);
    const varied = keys.filter((key) => {
      const at = content.keys.indexOf(key);
      return new Set(rows.map((row) => row.labels[at])).size > 1;
    });
    this.figure.hidden = varied.length < 2;
    if (this.figure.hidden) return;

    const drawn = thinned(rows);
    const width = Math.max(this.scroll.clientWidth || 600, (varied.length + 1) * AXIS_ROOM);
    const values = (key) => rows.map((row) => row.labels[content.keys.indexOf(key)]);
    const scales = [
      ...varied.map((key) => ({ key, ...ordinal(values(key)) })),
      { key: measured.metric, ...linear(rows.map((row) => row.summary.mean), metric) },
    ];
    const [left, right] = [edge(scales[0]), edge(scales.at(-1))];
    const across = (n) => left + (n * (width - left - right)) / (scales.length - 1);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", HEIGHT);
    this.svg.setAttribute("aria-label", `${count(rows.length, "group")} over ${varied.join(", ")} and ` +
      `${measured.metric}; the same numbers are in the table of runs.`);
    this.caption.textContent = `The grid: ${varied.join(", ")} and ${measured.metric}`;
    this.axes.replaceChildren(...scales.map((scale, n) => drawnAxis(scale, across(n), n)));
    this.lines.replaceChildren(...drawn.map((row) => {
      const group = content.groups[row.group];
      const points = scales.map((scale, n) => {
        const value = n < varied.length ? row.labels[content.keys.indexOf(scale.key)] : row.summary.mean;
        return `${across(n).toFixed(1)} ${scale.place(value).toFixed(1)}`;
      });
      const { colour, dash } = seriesLook(group.series);
      const text = `${nameOf(row.group)}: ${spread(row.summary, metric)}`;
      return shape("path", { d: `M${points.join("L")}`, stroke: colour, "stroke-dasharray": dash.join(" "),
        class: shown.has(group.name) ? "line chosen" : "line",
        onmouseenter: () => { this.told.textContent = text; },
        onclick: () => page.open(row.group) });
    }));
    this.told.textContent = drawn.length < rows.length
      ? `${drawn.length.toLocaleString("en")} of ${count(rows.length, "group")}, one for every so many: a filter shows others.`
      : "Point at a line to read it, click to open it.";
  }
}

// So few, at even distances.
const thinned = (rows) => {
  const step = Math.ceil(rows.length / LINES);
  return rows.filter((_, n) => n % step === 0);
};

const down = (share) => TOP + (1 - share) * (HEIGHT - TOP - BOTTOM);

// The values at even distances, numbers in their order.
function ordinal(values) {
  const known = [...new Set(values)].sort((a, b) =>
    (typeof a === "number" && typeof b === "number"
      ? a - b : (typeof a === "number") - (typeof b === "number") || String(a).localeCompare(String(b))));
  const at = new Map(known.map((value, n) => [value, known.length > 1 ? n / (known.length - 1) : 0.5]));
  const step = Math.ceil(known.length / ORDINAL);
  const ticks = known.filter((_, n) => n % step === 0).map((value) => [cut(told(value)), down(at.get(value))]);
  return { place: (value) => down(at.get(value) ?? 0), ticks };
}

function linear(values, metric) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const place = (value) => down(high > low ? (value - low) / (high - low) : 0.5);
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => low + share * (high - low));
  return { place, ticks: [...new Set(ticks)].map((value) => [number(value, metric), place(value)]) };
}

const cut = (text, most = 14) => (text.length > most ? `${text.slice(0, most - 1)}\u2026` : text);

// Room beside the first and the last axis for what stands there.
const edge = (scale) => 24 + 7 * Math.max(cut(scale.key, 20).length / 2, ...scale.ticks.map(([text]) => text.length));

function drawnAxis(scale, x, n) {
  const [side, anchor] = n === 0 ? [-9, "end"] : [9, "start"];
  return shape("g", { class: "axis" },
    shape("line", { x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }),
    shape("text", { x, y: 14, "text-anchor": "middle", class: "key" }, cut(scale.key, 20)),
    scale.ticks.map(([text, y]) => [
      shape("circle", { cx: x, cy: y, r: 2 }),
      shape("text", { x: x + side, y: y + 4, "text-anchor": anchor }, text),
    ]));
}
