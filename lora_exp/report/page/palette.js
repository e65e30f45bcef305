// Colours after Okabe and Ito, told apart by colour-blind eyes; each with a dash and a marker too.
"use strict";

const COLOURS = {
  light: ["#0072b2", "#d55e00", "#00855f", "#b0578d", "#b87f00", "#2f97cf", "#3b3f46", "#7a5ad0"],
  dark: ["#5ab0e8", "#ff8a4c", "#35c79b", "#e29ac4", "#f0b93a", "#9bd3f5", "#d3d7dd", "#b09cf5"],
};
const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]];
const MARKERS = ["circle", "rect", "triangle", "rectRot", "crossRot", "cross", "star"];
const OUTLINES = { // in a square from -4 to 4
  circle: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
  rect: "M-3.5-3.5h7v7h-7z",
  triangle: "M0-4.2L4 3.2H-4z",
  rectRot: "M0-4.6L4.6 0L0 4.6L-4.6 0z",
  crossRot: "M-3.3-3.3L3.3 3.3M-3.3 3.3L3.3-3.3",
  cross: "M-4.2 0H4.2M0-4.2V4.2",
  star: "M-4.2 0H4.2M0-4.2V4.2M-3-3L3 3M-3 3L3-3",
};

const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => document.documentElement.dataset.theme === "dark";

// The look of the nth line; the first 112 differ.
function look(n) {
  const colours = COLOURS[isDark() ? "dark" : "light"];
  return {
    colour: colours[n % colours.length],
    dash: DASHES[(n + Math.floor(n / DASHES.length)) % DASHES.length],
    marker: MARKERS[n % MARKERS.length],
  };
}

const faded = (colour, share) =>
  colour + Math.round(share * 255).toString(16).padStart(2, "0");

const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A piece of the line, as legends show it.
function swatch({ colour, dash, marker }) {
  return shape("svg", { class: "swatch", viewBox: "-16 -7 32 14", "aria-hidden": "true" },
    shape("path", { d: "M-15 0H15", stroke: colour, "stroke-width": 2, fill: "none",
      "stroke-dasharray": dash.join(" ") }),
    shape("path", { d: OUTLINES[marker], stroke: colour, "stroke-width": 1.6, fill: colour }));
}
