// Charts with Chart.js; each has a summary in words and its numbers as a table.
"use strict";

Chart.defaults.animation = false;
Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
Chart.defaults.maintainAspectRatio = false;
Chart.defaults.plugins.legend.display = false;

const TABLE_ROWS = 500; // of the numbers under a chart

// Standard deviations, as lines through the points.
const whiskers = {
  id: "whiskers",
  beforeDatasetsDraw(chart) {
    const { ctx, scales, chartArea } = chart;
    ctx.save();
    ctx.beginPath();
    ctx.rect(chartArea.left, chartArea.top, chartArea.width, chartArea.height);
    ctx.clip();
    chart.data.datasets.forEach((dataset, at) => dataset.data.forEach((point, number) => {
      if (!point.deviation || chart.getDatasetMeta(at).hidden || dataset.pointRadius === 0) return;
      const { x } = chart.getDatasetMeta(at).data[number];
      ctx.strokeStyle = faded(dataset.borderColor, 0.55);
      ctx.lineWidth = 1.4;
      ctx.beginPath();
      ctx.moveTo(x, scales.y.getPixelForValue(point.y - point.deviation));
      ctx.lineTo(x, scales.y.getPixelForValue(point.y + point.deviation));
      ctx.stroke();
    }));
    ctx.restore();
  },
};

const legendItems = (legend) => legend.map(({ name, style }) =>
  element("li", { title: name }, swatch(style), element("span", {}, name)));

class Figure {
  constructor(container, title, { tall = false } = {}) {
    this.canvas = element("canvas", { role: "img" });
    this.legend = element("ul", { class: "legend" });
    this.numbers = element("div", { class: "scroll" });
    this.caption = element("figcaption", {}, title);
    this.empty = element("p", { class: "quiet", hidden: true });
    this.box = element("div", { class: tall ? "canvas tall" : "canvas" }, this.canvas);
    this.figure = element("figure", {}, this.caption, this.empty, this.box, this.legend,
      element("details", { class: "numbers", ontoggle: () => this.tell() },
        element("summary", {}, "Numbers"), this.numbers));
    container.append(this.figure);
  }

  // `legend`: names and looks; `table`: makes the header and rows of its numbers.
  draw({ type = "scatter", datasets, options, legend, summary, table, empty = null }) {
    this.empty.textContent = empty ?? "";
    this.empty.hidden = empty == null;
    this.box.hidden = this.legend.hidden = empty != null;
    this.canvas.setAttribute("aria-label", summary);
    this.legend.replaceChildren(...legendItems(legend));
    this.table = table;
    this.tell();
    if (empty != null) return;
    if (this.chart) {
      Object.assign(this.chart, { options });
      this.chart.data.datasets = datasets;
      this.chart.update("none");
    } else {
      this.chart = new Chart(this.canvas, { type, data: { datasets }, options, plugins: [whiskers] });
    }
  }

  tell() {
    if (!this.figure.querySelector("details").open) return;
    const { header, rows } = this.table();
    const more = rows.length - TABLE_ROWS;
    this.numbers.replaceChildren(
      plainTable(header, rows.slice(0, TABLE_ROWS), { numeric: (column) => column > 0 }),
      more > 0 ? element("p", { class: "quiet" }, `and ${count(more, "more row")}`) : "");
  }
}

function axis(title, more = {}) {
  return {
    title: { display: title !== "", text: title, color: ink("--quiet"), font: { size: 12 } },
    grid: { color: ink("--line"), drawTicks: false },
    border: { display: false },
    ...more,
    ticks: { color: ink("--quiet"), padding: 6, maxRotation: 0, font: { size: 11.5 }, ...more.ticks },
  };
}

// Ticks of a logarithmic axis: at the values themselves where they are few, else at 1, 2 and 5.
function logarithmic(title, values, tell) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  let ticks = [...new Set(values)].sort((a, b) => a - b);
  if (ticks.length > 7 || high / low > 1e4) {
    const steps = high / low > 1e3 ? [1] : [1, 2, 5];
    ticks = [];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high * 10; power += 1) {
      ticks.push(...steps.map((step) => Number(`${step}e${power}`)));
    }
  }
  const [min, max] = [low / 1.35, high * 1.35];
  const apart = (max / min) ** 0.09; // what a label takes of the axis
  let last = 0;
  ticks = ticks.filter((value) => value >= Math.max(min, last * apart) && value <= max && (last = value))
    .map((value) => ({ value }));
  return axis(title, { type: "logarithmic", min, max,
    afterBuildTicks: (scale) => { scale.ticks = ticks; },
    ticks: { callback: (value) => tell(value), autoSkip: true, autoSkipPadding: 10 } });
}

function options({ x, y, label, click = null, mode = "nearest", along = "xy", intersect = true }) {
  const text = ink("--ink");
  return {
    scales: { x, y },
    layout: { padding: { top: 6, right: 8 } },
    interaction: { mode, axis: along, intersect },
    onClick: (_, found) => { if (click && found.length) click(found[0]); },
    onHover: (event, found) => {
      event.native.target.style.cursor = click && found.length ? "pointer" : "";
    },
    plugins: {
      tooltip: {
        backgroundColor: ink("--raised"), borderColor: ink("--edge"), borderWidth: 1,
        titleColor: text, bodyColor: text, padding: 10, cornerRadius: 6, displayColors: false,
        titleFont: { weight: 600 }, filter: (item) => !item.dataset.helper,
        callbacks: { title: () => "", label },
      },
    },
  };
}

// -- learning curves ---------------------------------------------------------------------------

function curveOf(group, wanted) {
  if (wanted !== "metric") return group.curves.find(({ name }) => name === wanted);
  return group.curves.find(({ name }) => name !== "loss" && name !== "training loss");
}

function drawCurves(figure, page) {
  const { content, shown, wanted } = page;
  const chosen = content.groups
    .map((group, index) => ({ index, slot: shown.get(group.name), curve: curveOf(group, wanted) }))
    .filter(({ slot, curve }) => slot != null && curve)
    .sort((one, other) => one.slot - other.slot);
  const nameOf = namer(chosen.map(({ index }) => page.rowOf.get(index)));
  const drawn = chosen.map((one) => ({ ...one, name: nameOf(one.index), style: look(one.slot) }));
  const names = [...new Set(drawn.map(({ curve }) => curve.name))];
  const of = (curve) => content.metrics[curve.name];
  const datasets = drawn.flatMap(({ curve, style, name, index }) => {
    const { scale } = of(curve) ?? unknown;
    const at = (shift) => curve.epochs.map((x, n) => ({
      x, y: curve.mean[n] == null ? null : (curve.mean[n] + shift * (curve.deviation[n] ?? 0)) * scale,
    }));
    const band = { helper: true, showLine: true, pointRadius: 0, borderWidth: 0, pointHitRadius: 0 };
    const several = curve.deviation.some((one) => one);
    const line = {
      label: name, index, curve, showLine: true, data: at(0), borderColor: style.colour,
      backgroundColor: style.colour, borderDash: style.dash, borderWidth: 2, pointStyle: style.marker,
      pointRadius: curve.epochs.length > 12 ? (point) => (point.dataIndex % 5 ? 0 : 3.5) : 3.5,
      pointHoverRadius: 5,
    };
    return several
      ? [line, { ...band, data: at(-1) },
        { ...band, data: at(1), fill: "-1", backgroundColor: faded(style.colour, 0.14) }]
      : [line];
  });
  const value = (curve, n, deviation = true) => spread({ mean: curve.mean[n],
    deviation: deviation ? curve.deviation[n] : null }, of(curve));
  const ends = drawn.map(({ curve, name }) =>
    `${name} ends at ${value(curve, curve.mean.length - 1)}`);
  figure.draw({
    datasets,
    legend: drawn,
    empty: drawn.length ? null : "Choose rows of the table, by their boxes, to see how they learned.",
    options: options({
      x: axis("epoch", { type: "linear", min: 0 }),
      y: axis(names.length === 1 ? names[0] : "metric", { grace: "4%" }),
      along: "x", intersect: false,
      label: ({ dataset, dataIndex }) =>
        `${dataset.label}: ${value(dataset.curve, dataIndex)} (epoch ${dataset.curve.epochs[dataIndex]})`,
      click: ({ datasetIndex }) => page.open(datasets[datasetIndex].index),
    }),
    summary: `Learning curves over epochs: ${names.join(", ")}. ${ends.join("; ")}.`,
    table: () => ({
      header: ["group", "curve", "epoch", "mean", "deviation"],
      rows: drawn.flatMap(({ curve, name }) => curve.epochs.map((epoch, n) =>
        [name, curve.name, String(epoch), value(curve, n, false), number(curve.deviation[n], of(curve))])),
    }),
  });
}

// -- the metric against what was varied --------------------------------------------------------

const AGAINST = [
  { title: "against rank", x: (group) => group.rank, axis: "rank", tell: String },
  { title: "against trained parameters", x: (group) => group.parameters, axis: "trained parameters", tell: short },
  { title: "against learning rate", x: (group) => group.learning_rate, axis: "learning rate", tell: told },
];

function makeResults(container) {
  return AGAINST.map((against) => ({ ...against, figure: new Figure(container, "") }));
}

function drawResults(figures, page) {
  figures.forEach((figure) => drawResult(figure, page));
}

function drawResult({ title, x, axis: name, tell, figure }, page) {
  const { content, measured, seriesLook } = page;
  const nameOf = namer(page.measuredRows);
  const metric = content.metrics[measured.metric] ?? unknown;
  const points = page.measuredRows
    .map((row) => ({ row, group: content.groups[row.group] }))
    .filter(({ row, group }) => row.summary && x(group) > 0)
    .map(({ row, group }) => ({ x: x(group), y: row.summary.mean * metric.scale, series: group.series,
      deviation: (row.summary.deviation ?? 0) * metric.scale, index: row.group, row }));
  const values = points.map((point) => point.x);
  figure.figure.hidden = new Set(values).size < 2;
  if (figure.figure.hidden) return;
  figure.caption.textContent = title[0].toUpperCase() + title.slice(1);
  const series = [...new Set(points.map((point) => point.series))].sort();
  const datasets = [], sentences = [];
  for (const one of series) {
    const style = seriesLook(one);
    const own = points.filter((point) => point.series === one).sort((a, b) => a.x - b.x);
    const best = upper(own, metric.lower_is_better);
    const common = { label: one, borderColor: style.colour, backgroundColor: style.colour };
    datasets.push({ ...common, helper: true, data: best, showLine: true, pointRadius: 0, pointHitRadius: 0,
      borderDash: style.dash, borderWidth: 1.8 });
    datasets.push({ ...common, data: own, pointStyle: style.marker, pointRadius: 4.5, pointHoverRadius: 6.5,
      borderWidth: 1.8 });
    sentences.push(`${one}: ${best.map((point) => `${tell(point.x)}: ${point.y.toFixed(2)}`).slice(0, 12).join(", ")}`);
  }
  figure.draw({
    datasets,
    legend: [],
    options: options({
      x: logarithmic(name, values, tell),
      y: axis("", {
        suggestedMin: Math.min(...points.map((point) => point.y - point.deviation)),
        suggestedMax: Math.max(...points.map((point) => point.y + point.deviation)),
      }),
      label: ({ raw }) => `${nameOf(raw.index)}: ${spread(raw.row.summary, metric)}`,
      click: ({ datasetIndex, index }) => page.open(datasets[datasetIndex].data[index].index),
    }),
    summary: `${measured.metric} ${title}, the best group at each value. ${sentences.join(". ")}.`,
    table: () => ({
      header: ["group", name, measured.metric],
      rows: points.map((point) => [nameOf(point.index), tell(point.x), spread(point.row.summary, metric)]),
    }),
  });
}

// The best point at each x: what the line goes through.
function upper(points, lower) {
  const best = new Map();
  for (const point of points) {
    const known = best.get(point.x);
    if (!known || (lower ? point.y < known.y : point.y > known.y)) best.set(point.x, point);
  }
  return [...best.values()];
}
