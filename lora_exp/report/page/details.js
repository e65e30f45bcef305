// What stands behind a row: the group's runs, and of each its config, origin, log and texts.
"use strict";

class DetailsDialog {
  constructor(dialog, closed) {
    this.dialog = dialog;
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => {
      const { group } = this.shown;
      this.shown = null;
      closed(group);
    });
  }

  openGroup(page, index) {
    this.shown = { group: page.content.groups[index].name, run: null };
    this.draw(page);
  }

  openRun(page, index) {
    const run = page.content.runs[index];
    const group = page.content.groups.find((one) => one.runs.includes(index));
    this.shown = { group: group.name, run: run.name };
    this.draw(page);
  }

  // Also when the content is new: what was open stays open, where it was.
  draw(page) {
    if (!this.shown) return;
    const { content } = page;
    const index = content.groups.findIndex(({ name }) => name === this.shown.group);
    if (index < 0) return void this.dialog.close();
    const run = content.runs.find(({ name }) => name === this.shown.run);
    const { scrollTop } = this.dialog;
    const again = this.drawn === `${this.shown.group} ${this.shown.run}`;
    const folds = again ? new Map([...this.dialog.querySelectorAll("details")].map((one) => [one.dataset.name, one.open])) : new Map();
    const focus = again ? document.activeElement?.dataset.focus : null;
    this.dialog.replaceChildren(...(run ? this.run(page, run, index) : this.group(page, index)));
    this.drawn = `${this.shown.group} ${this.shown.run}`;
    for (const one of this.dialog.querySelectorAll("details")) one.open = folds.get(one.dataset.name) ?? one.open;
    if (!this.dialog.open) this.dialog.showModal();
    this.dialog.scrollTop = again ? scrollTop : 0;
    if (focus) this.dialog.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
    else if (!again) this.dialog.querySelector(".close").focus();
  }

  head(title, back = null) {
    return element("header", {},
      back && element("button", { type: "button", class: "back", onclick: back }, "\u2190 All seeds"),
      element("h2", { id: "details-title" }, title),
      element("button", { type: "button", class: "close", "aria-label": "Close", "data-focus": "close",
        onclick: () => this.dialog.close() }, "\u2715"));
  }

  group(page, index) {
    const { content } = page;
    const group = content.groups[index];
    const row = content.rows.find((one) => one.group === index);
    const runs = group.runs.map((number) => content.runs[number]);
    const metrics = [...new Set(runs.flatMap((run) => Object.keys(run.metrics)))];
    const open = (run) => { this.shown = { ...this.shown, run: run.name }; this.draw(page); };
    return [
      this.head(page.nameOf(index)),
      pairs(Object.fromEntries(content.keys.map((key, at) => [key, told(row.labels[at])]))),
      element("h3", {}, count(runs.length, "run")),
      element("div", { class: "scroll" }, element("table", { class: "plain runs" },
        element("thead", {}, element("tr", {}, ["seed", "state", ...metrics, "epoch", "time"].map((name, at) =>
          element("th", { scope: "col", class: at === 1 ? null : "number" }, name)))),
        element("tbody", {}, runs.map((run) => element("tr", { onclick: () => open(run) },
          element("td", { class: "number" }, element("button", { type: "button", class: "link",
            "data-focus": `run ${run.name}`, "aria-label": `Run with seed ${told(run.seed)}` }, told(run.seed))),
          element("td", {}, stateBadge(run.state)),
          metrics.map((name) => element("td", { class: "number" }, number(run.metrics[name], content.metrics[name]))),
          element("td", { class: "number" }, run.epoch == null ? NONE : String(Number(run.epoch.toFixed(3)))),
          element("td", { class: "number" }, duration(run.seconds))))))),
      element("p", { class: "quiet" }, "A seed opens its config, origin, log and texts."),
    ];
  }

  run(page, run, index) {
    const { content } = page;
    const { details } = run;
    const back = () => { this.shown = { ...this.shown, run: null }; this.draw(page); };
    const metrics = Object.entries(run.metrics).map(([name, value]) => [name, number(value, content.metrics[name])]);
    const facts = { state: stateBadge(run.state),
      ...(run.why ? { reason: run.why } : {}),
      ...(run.step == null ? {} : { update: `${run.step} of ${run.total_steps ?? "?"}` }),
      ...(run.epoch == null ? {} : { [run.state === "done" ? "selected epoch" : "epoch"]: String(Number(run.epoch.toFixed(3))) }),
      "training time": duration(run.seconds),
      ...Object.fromEntries(metrics) };
    const parts = [this.head(run.name, back), pairs(facts)];
    if (!details) {
      parts.push(element("p", { class: "notice" }, content.left_out ?? ""));
      return parts;
    }
    if (details.texts.length) parts.push(this.texts(content, details));
    const whole = (usual, own) => Object.entries({ ...usual, ...own }).filter(([, value]) => value !== "");
    const config = whole(content.config, details.config);
    parts.push(
      fold("Log", [
        details.cut && element("p", { class: "quiet" }, `Its end; all of it: python -m lora_exp logs ${run.name}`),
        element("pre", { tabindex: 0 }, details.log || "There is no log yet.")], true),
      fold("Config", [nested(config)]),
      fold("Origin", [pairs(Object.fromEntries(whole(content.origin, details.origin)))]));
    return parts;
  }

  texts(content, { texts, further }) {
    return fold("Texts", [
      ...texts.map(([number, output]) => {
        const { source, references } = content.sources[number];
        return element("article", { class: "text" },
          element("p", { class: "source" }, hidden("Source: "), source),
          element("div", {},
            element("div", {}, element("h4", {}, "Output"), element("p", {}, output || "(empty)")),
            element("div", {}, element("h4", {}, references.length === 1 ? "Reference" : "References"),
              references.map((one) => element("p", {}, one)))));
      }),
      further > 0 && element("p", { class: "quiet" }, `and ${count(further, "more text")} in its folder`),
    ], true);
  }
}

const fold = (name, children, open = false) =>
  element("details", { open, "data-name": name, class: "fold" }, element("summary", {}, name),
    children);

const pairs = (values) => element("dl", {}, Object.entries(values).map(([name, value]) =>
  element("div", {}, element("dt", {}, name), element("dd", {}, value))));

// Keys with dots, under the word that they share.
function nested(entries) {
  const sections = new Map();
  for (const [key, value] of entries) {
    const [section, ...rest] = key.split(".");
    const name = rest.length ? section : "run";
    sections.set(name, { ...sections.get(name), [rest.join(".") || section]: value });
  }
  return element("div", { class: "sections" }, [...sections].map(([name, values]) =>
    element("section", {}, element("h4", {}, name), pairs(values))));
}
