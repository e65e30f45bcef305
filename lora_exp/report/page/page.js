// The page: what is shown of the content, kept while one looks and while new content comes.
"use strict";

const CURVES = 6; // that are shown at first
const TYPING = 120; // milliseconds without a key before the filter is applied

const page = {
  content: null,
  shown: new Map(), // by a group's name, the number of its look
  wanted: "metric",
  measured: null,
  filter: "",
  open: (index) => dialog.openGroup(page, index),
};

const table = new GroupsTable($("table"), { toggle, open: page.open });
const dialog = new DetailsDialog($("details"), (group) => table.return(group));
const curves = new Figure($("curves"), "", { tall: true });
const results = makeResults($("results"));
const parallel = new Parallel($("parallel"));

function show(content) {
  const first = page.content === null;
  const before = new Set(page.content?.groups.map(({ name }) => name));
  page.content = content;
  const several = (key) => new Set(content.rows.map((row) => row.labels[content.keys.indexOf(key)])).size > 1;
  page.keys = content.rows.length > 1 ? content.keys.filter(several) : content.keys;
  page.metrics = [...new Set(content.rows.map((row) => row.metric).filter((name) => name))];
  page.rowOf = new Map(content.rows.map((row) => [row.group, row]));
  page.nameOf = namer(content.rows);
  const series = [...new Set(content.groups.map((group) => group.series))].sort();
  page.seriesLook = (one) => look(series.indexOf(one));
  page.words = content.rows.map((row) => ({
    values: [...row.labels, row.metric ?? ""].join("\n").toLowerCase(),
    pairs: new Set(content.keys.map((key, at) => `${key}=${row.labels[at]}`.toLowerCase())),
  }));
  fillChoices();
  if (first) chooseCurves();
  else followCurves(before);
  drawHeader();
  drawNotes();
  drawTables();
  draw();
  dialog.draw(page);
}

// What tells these rows' groups from each other, in words.
function namer(rows) {
  const { content } = page;
  const places = content.keys.map((_, at) => at)
    .filter((at) => new Set(rows.map((row) => row.labels[at])).size > 1);
  const word = (value, at) => (typeof value === "number"
    ? `${content.keys[at].split(".").at(-1)}=${told(value)}` : told(value));
  return (index) => {
    const { labels } = page.rowOf.get(index);
    return (places.length ? places : labels.map((_, at) => at))
      .filter((at) => labels[at] !== "" && labels[at] != null)
      .map((at) => word(labels[at], at)).join(" ") || content.groups[index].name;
  };
}

// -- what is chosen ----------------------------------------------------------------------------

function fillChoices() {
  const { content } = page;
  const measures = new Map(content.rows.filter((row) => row.metric).map((row) => [`${row.task}\n${row.metric}`, row]));
  const several = new Set(content.rows.map((row) => row.task)).size > 1;
  offer($("measured"), [...measures].map(([value, row]) => [value, several ? `${row.task}, ${row.metric}` : row.metric]));
  $("measured-label").hidden = measures.size === 0;
  const [task, metric] = $("measured").value.split("\n");
  page.measured = { task, metric };
  offer($("curve"), [["metric", page.metrics.length === 1 ? page.metrics[0] : "the metric"],
    ["loss", "validation loss"], ["training loss", "training loss"]]);
  page.wanted = $("curve").value;
}

function offer(select, choices) {
  const { value } = select;
  select.replaceChildren(...choices.map(([id, text]) => element("option", { value: id }, text)));
  if (choices.some(([id]) => id === value)) select.value = value;
}

// At first: all of a few, else the best of each series on the first task.
function chooseCurves() {
  const { content, measured } = page;
  const able = content.rows.filter((row) => content.groups[row.group].curves.length);
  const few = new Set(able.map((row) => row.group)).size <= CURVES;
  const lower = content.metrics[measured.metric]?.lower_is_better;
  const worth = (row) => (row.summary ? (lower ? -1 : 1) * row.summary.mean : -Infinity);
  const best = new Map();
  for (const row of few ? able : able.filter(({ task, metric }) => task === measured.task && metric === measured.metric)) {
    const key = few ? row.group : content.groups[row.group].series;
    if (!best.has(key) || worth(row) > worth(best.get(key))) best.set(key, row);
  }
  for (const row of [...best.values()].slice(0, CURVES)) choose(content.groups[row.group].name);
}

// New groups join while there are few; those that are gone leave.
function followCurves(before) {
  const groups = page.content.groups.filter((group) => group.curves.length);
  const names = new Set(groups.map(({ name }) => name));
  for (const name of [...page.shown.keys()]) if (!names.has(name)) page.shown.delete(name);
  if (names.size <= CURVES) for (const name of names) if (!before.has(name)) choose(name);
}

function choose(name) {
  const taken = new Set(page.shown.values());
  let slot = 0;
  while (taken.has(slot)) slot += 1;
  page.shown.set(name, slot);
}

function toggle(index) {
  const { name, curves: able } = page.content.groups[index];
  if (page.shown.has(name)) page.shown.delete(name);
  else if (able.length) choose(name);
  draw();
}

// Every word stands in one of a row's values; KEY=VALUE is one of them, whole.
function matching() {
  const words = page.filter.toLowerCase().split(/\s+/).filter((word) => word);
  const holds = ({ values, pairs }, word) => pairs.has(word) || values.includes(word);
  return page.content.rows.filter((_, at) => words.every((word) => holds(page.words[at], word)));
}

// -- drawing -----------------------------------------------------------------------------------

function draw() {
  const { content } = page;
  page.rows = matching();
  page.measuredRows = page.rows.filter(({ task, metric }) =>
    task === page.measured.task && metric === page.measured.metric);
  table.draw(page);
  $("count").textContent = page.rows.length < content.rows.length
    ? `${page.rows.length.toLocaleString("en")} of ${count(content.rows.length, "row")}` : "";
  drawCurves(curves, page);
  const series = [...new Set(page.measuredRows.map((row) => content.groups[row.group].series))].sort();
  $("series").replaceChildren(...legendItems(series.map((name) => ({ name, style: page.seriesLook(name) }))));
  drawResults(results, page);
  parallel.draw(page);
}

function drawHeader() {
  const { content } = page;
  $("title").textContent = document.title = content.title;
  $("standing").replaceChildren(
    element("span", {}, `${count(content.runs.length, "run")} in ${count(content.groups.length, "group")}`),
    ...Object.entries(content.states).map(([state, number]) =>
      stateBadge(state, `${number.toLocaleString("en")} ${state}`)));
  $("left-out").textContent = content.left_out ?? "";
  $("left-out").hidden = !content.left_out;
  const alike = content.keys.filter((key) => !page.keys.includes(key))
    .map((key) => [key, content.rows[0]?.labels[content.keys.indexOf(key)]]).filter(([, value]) => value !== "");
  $("alike").textContent = alike.length ? `All with ${alike.map(([key, value]) => `${key} ${told(value)}`).join(", ")}` : "";
  const written = new Date(content.written);
  $("footer").replaceChildren(
    element("p", {}, "Written ", element("time", { datetime: content.written }, written.toLocaleString("en-GB")),
      element("span", { id: "live", role: "status" })),
    element("p", {}, "Charts by Chart.js (MIT licence)."));
}

function drawNotes() {
  const { content } = page;
  const known = new Map(content.runs.map((run, index) => [run.name, index]));
  const line = (text) => {
    const [name] = text.split(" ", 1);
    if (!known.has(name)) return element("li", {}, text);
    return element("li", {}, element("button", { type: "button", class: "link",
      onclick: () => dialog.openRun(page, known.get(name)) }, name), text.slice(name.length));
  };
  $("notes").replaceChildren($("notes-title"),
    element("ul", {}, content.standing.map(line)),
    element("ul", { class: "quiet" }, [...content.notes,
      "Curves: mean and standard deviation over the seeds that were measured at that epoch.",
      "Lines in results go through the best group at each value; lines through points are standard deviations.",
    ].map((text) => element("li", {}, text))));
}

function drawTables() {
  const { tables } = page.content;
  $("tables").hidden = tables.length === 0;
  $("tables").replaceChildren(...tables.flatMap((one) => {
    const side = (column) => (column < one.labels ? null : "number");
    const line = (cells, tag) => cells.map((cell, column) => element(tag,
      { class: side(column), scope: tag === "th" ? "col" : null }, cell));
    return [
      element("h2", {}, one.title),
      element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": one.title },
        element("table", { class: "plain published" },
          element("thead", {}, element("tr", {}, line(one.header, "th"))),
          element("tbody", {}, one.rows.map((row, at) => element("tr", { class: one.blocks.includes(at) ? "block" : null },
            line(row.map(([text, bold]) => (bold ? element("strong", {}, text) : text)), "td")))))),
      element("ul", { class: "quiet" }, one.notes.map((text) => element("li", {}, text))),
    ];
  }));
}

// -- what one does -----------------------------------------------------------------------------

let typing = null;
$("filter").addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(() => { page.filter = event.target.value; draw(); }, TYPING);
});
$("curve").addEventListener("change", (event) => { page.wanted = event.target.value; drawCurves(curves, page); });
$("measured").addEventListener("change", () => { fillChoices(); draw(); });

let theme = null; // the system's, until one is chosen
function paint() {
  const dark = (theme ?? (system.matches ? "dark" : "light")) === "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", `Change to ${dark ? "light" : "dark"} colours`);
  if (page.content) draw();
}
$("theme").addEventListener("click", () => { theme = isDark() ? "light" : "dark"; paint(); });
system.addEventListener("change", paint);
compact.addEventListener("change", draw);

// -- new content, where the page is served -----------------------------------------------------

let tag = null;
async function refresh() {
  const answer = await fetch("content.json", { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} })
    .catch(() => null);
  if (answer?.status === 200) {
    tag = answer.headers.get("ETag");
    show(await answer.json());
  }
  $("live").textContent = answer ? ", and follows the runs" : ", and no longer follows the runs: its command has ended";
}

page.filter = $("filter").value; // some browsers keep it when a page is loaded again
paint();
show(JSON.parse($("content").textContent));
const seconds = Number(document.documentElement.dataset.refresh);
if (seconds) setInterval(refresh, seconds * 1000);
