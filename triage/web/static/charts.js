// Plots by uPlot, each with the table of what it shows for who cannot see it.
import { make } from "./words.js";

const drawn = new Set();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3], [1, 5]];
const COLOURS = ["--accent", "--flag", "--good", "--stat", "--muted"];

/**
 * A figure: title, plot, what it says, table.
 *
 * `days` are ISO dates; `series` are `{name, values}` with null where nothing is known.
 * `most` and `least` bound the vertical axis where the quantity has bounds.
 */
export function chart({ title, caption, days, series, unit = "", digits = 2, bars = false, least, most }) {
  const place = make("div", { class: "plot", "aria-hidden": "true" });
  const format = (value) => (value === null || value === undefined ? "–" : value.toFixed(digits));
  const table = make(
    "table",
    { class: "plain" },
    make("caption", { class: "hidden", text: title }),
    make("thead", {}, make("tr", {}, make("th", { scope: "col", text: "Day" }), ...series.map((each) => make("th", { scope: "col", class: "number", text: each.name })))),
    make("tbody", {}, ...days.map((day, row) => make("tr", {}, make("th", { scope: "row", class: "mono", text: day }), ...series.map((each) => make("td", { class: "number", text: format(each.values[row]) }))))),
  );
  const figure = make(
    "figure",
    { class: "chart" },
    make("h2", { text: title }),
    place,
    make("figcaption", { text: caption }),
    make("details", {}, make("summary", { text: "As a table" }), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}, as a table` }, table)),
  );
  const draw = () => {
    place.replaceChildren();
    if (!days.length || !series.some((each) => each.values.some((value) => value !== null))) {
      place.append(make("p", { class: "empty", text: "Nothing to show for these days." }));
      return;
    }
    const seconds = days.map((day) => Date.parse(`${day.slice(0, 10)}T00:00`) / 1000);
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") }, font: "12px system-ui, sans-serif" };
    const options = {
      width: place.clientWidth || 480,
      height: 210,
      padding: [null, 38, null, null],
      scales: { x: { time: true, range: () => [seconds[0] - 43_200, seconds.at(-1) + 43_200] }, y: { range: (_, low, high) => [least ?? Math.min(0, low), most ?? Math.max(high * 1.08, least ?? 0, 1e-6)] } },
      axes: [{ ...axis, values: "{YYYY}-{MM}-{DD}", space: 90, incrs: [1, 2, 7, 14, 30, 60].map((days) => days * 86_400) }, { ...axis, size: 54, values: (_, ticks) => ticks.map((tick) => `${+tick.toFixed(4)}${unit}`) }],
      cursor: { points: { size: 6 }, drag: { x: false, y: false } },
      legend: { live: true },
      series: [
        { label: "Day", value: "{YYYY}-{MM}-{DD}" },
        ...series.map((each, at) => ({
          label: each.name,
          stroke: colour(COLOURS[at % COLOURS.length]),
          fill: bars ? `${colour(COLOURS[at % COLOURS.length])}66` : undefined,
          width: bars ? 1 : 2,
          dash: DASHES[at % DASHES.length],
          spanGaps: false,
          points: { show: !bars && days.length < 60, size: 5 },
          paths: bars ? uPlot.paths.bars({ size: [0.7, 24] }) : undefined,
          value: (_, value) => (value === null ? "–" : `${value.toFixed(digits)}${unit}`),
        })),
      ],
    };
    new uPlot(options, [seconds, ...series.map((each) => each.values)], place);
  };
  drawn.add(draw);
  requestAnimationFrame(draw);
  return figure;
}

/**
 * A figure of what has no days: each row a bar, its name and its numbers, so that plot and table are one.
 *
 * `rows` are arrays as long as `heads`; `lengths` are from 0 to 1, or null where there is nothing.
 */
export function bars({ title, caption, heads, rows, lengths, empty, mono = false }) {
  const line = (row, at) => {
    const bar = make("span", { class: "bar-row", "aria-hidden": "true" });
    bar.style.setProperty("--share", lengths[at] ?? 0);
    const [name, ...values] = row;
    return make(
      "tr",
      {},
      make("th", { scope: "row", class: mono ? "mono" : false, text: name }),
      make("td", { class: "bars" }, lengths[at] === null ? null : bar),
      ...values.map((value) => make("td", { class: "number", text: String(value) })),
    );
  };
  const [first, ...others] = heads;
  const table = make(
    "table",
    { class: "plain tight" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col", text: first }), make("td", {}), ...others.map((head) => make("th", { scope: "col", class: "number", text: head })))),
    make("tbody", {}, ...rows.map(line)),
  );
  const content = rows.length ? make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, table) : make("p", { class: "empty", text: empty });
  return make("figure", { class: "chart" }, make("h2", { text: title }), content, make("figcaption", { text: caption }));
}

export function forget() {
  drawn.clear();
}

const again = () => drawn.forEach((draw) => draw());
document.documentElement.addEventListener("themechange", again);
let soon;
addEventListener("resize", () => {
  clearTimeout(soon);
  soon = setTimeout(again, 120);
});
