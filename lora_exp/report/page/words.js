// Values as the tables of `report` have them.
"use strict";

const NONE = "\u2013";
const STATE_MARKS = {
  queued: "\u25cb", running: "\u25b6", done: "\u25cf", failed: "\u2715",
  preempted: "\u2016", cancelled: "\u2212", lost: "?",
};

const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

function told(value) {
  if (value === "") return NONE;
  if (typeof value === "number" && value !== 0 && Math.abs(value) < 1e-3) {
    return value.toExponential().replace("e-", "e\u2212");
  }
  return String(value);
}

const unknown = { scale: 1, decimals: 2 };

function number(value, metric, digits = null) {
  if (value == null) return NONE;
  const { scale, decimals } = metric ?? unknown;
  return (value * scale).toFixed(digits ?? decimals).replace("-", "\u2212");
}

function spread(summary, metric) {
  if (!summary) return NONE;
  const mean = number(summary.mean, metric);
  return summary.deviation == null ? mean : `${mean} \u00b1 ${number(summary.deviation, metric)}`;
}

function millions(parameters) {
  if (parameters == null) return NONE;
  return parameters >= 1e5
    ? `${(parameters / 1e6).toFixed(2)}M`
    : Math.round(parameters).toLocaleString("en");
}

function duration(seconds) {
  if (seconds == null) return NONE;
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= length) return `${(seconds / length).toFixed(1)} ${unit}`;
  }
  return `${seconds.toFixed(0)} s`;
}

function size(bytes) {
  if (bytes == null) return NONE;
  for (const [unit, length] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (bytes >= length) return `${(bytes / length).toFixed(1)} ${unit}`;
  }
  return `${bytes} bytes`;
}

// A count with its unit's prefix, for an axis: 1k, 20k, 3M.
function short(value) {
  for (const [unit, length] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (value >= length) return `${Number((value / length).toPrecision(2))}${unit}`;
  }
  return String(value);
}

const stateBadge = (state, text = state) =>
  element("span", { class: `state ${state}` },
    element("span", { class: "mark", "aria-hidden": "true" }, STATE_MARKS[state] ?? "?"), text);
