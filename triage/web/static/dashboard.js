// Volume, flags, waiting, agreement, consoles and drift, each as a plot and as a table.
import { get } from "./api.js";
import { bars, chart, forget } from "./charts.js";
import { toast } from "./keys.js";
import { clock, duration, make, REASONS } from "./words.js";

const form = document.getElementById("range");
const tiles = document.getElementById("tiles");
const charts = document.getElementById("charts");

const tile = (value, words) => make("div", { class: "tile" }, make("b", { text: value }), make("span", { text: words }));
const share = (part, whole) => (whole ? part / whole : null);
const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);
const minutes = (value) => (value === null ? "–" : duration(60 * value));
/** Each of the greatest of them. */
const shares = (values) => values.map((value) => (value === null ? null : value / Math.max(...values, 1)));
const sum = (rows, name) => rows.reduce((total, row) => total + row[name], 0);

function table(title, caption, heads, rows, empty) {
  const content = rows.length
    ? make(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
        make(
          "table",
          { class: "plain" },
          make("thead", {}, make("tr", {}, ...heads.map((head, at) => make("th", { scope: "col", class: at ? "number" : false, text: head })))),
          make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((value, at) => make(at ? "td" : "th", { scope: at ? false : "row", class: at ? "number" : false, text: String(value) }))))),
        ),
      )
    : make("p", { class: "empty", text: empty });
  return make("figure", { class: "chart" }, make("h2", { text: title }), content, make("figcaption", { text: caption }));
}

async function load() {
  const { days: back, console: title } = Object.fromEntries(new FormData(form));
  try {
    const [figures, drift] = await Promise.all([get("/api/v1/statistics", { days: back, console: title }), get("/api/v1/drift", { console: title })]);
    consoles(figures.known_consoles);
    show(figures, drift);
  } catch (error) {
    toast(error.message, { kind: "error", seconds: 30 });
  }
}

function consoles(known) {
  const select = form.elements.console;
  const chosen = select.value;
  select.replaceChildren(make("option", { value: "", text: "all" }), ...known.map((text) => make("option", { text })));
  select.value = chosen;
}

function show({ days, waits, agreement, consoles: perConsole, scores, reasons }, drift) {
  forget();
  const [received, scored, flagged] = ["received", "scored", "flagged"].map((name) => sum(days, name));
  const agreed = sum(agreement, "flagged_confirmed") + sum(agreement, "unflagged_rejected");
  const read = agreed + sum(agreement, "flagged_rejected") + sum(agreement, "unflagged_confirmed");
  tiles.replaceChildren(
    tile(received, "exams received"),
    tile(percent(share(scored, received)), "of them scored"),
    tile(percent(share(flagged, scored)), "of the scored flagged"),
    tile(read, "standing readings"),
    tile(percent(share(agreed, read)), "agree with the flag"),
  );
  const names = days.map((row) => row.day);
  const column = (rows, name, of) => ({ name, values: rows.map(of) });
  const flaggedRead = (row) => row.flagged_confirmed + row.flagged_rejected;
  const restRead = (row) => row.unflagged_confirmed + row.unflagged_rejected;
  charts.replaceChildren(
    ...alarms(drift.alarms),
    chart({
      title: "Exams each day", caption: "Received, and not scored or failed among them. Days are days of UTC.", days: names, digits: 0, bars: true,
      series: [column(days, "received", (row) => row.received), column(days, "not scored or failed", (row) => row.not_scored + row.failed)],
    }),
    chart({
      title: "Flag rate", caption: "Flagged of the scored. A lasting change without another kind of patients points to drift.", days: names, most: 1, least: 0,
      series: [column(days, "flagged", (row) => share(row.flagged, row.scored))],
    }),
    chart({
      title: "Agreement with readers", caption: "Of flagged exams, how many a reader confirmed; of unflagged ones, how many a reader rejected. By the day of the reading; both are the readers' verdicts, which may be wrong, too.", days: agreement.map((row) => row.day), most: 1, least: 0,
      series: [column(agreement, "flagged, confirmed", (row) => share(row.flagged_confirmed, flaggedRead(row))), column(agreement, "unflagged, rejected", (row) => share(row.unflagged_rejected, restRead(row)))],
    }),
    chart({
      title: "Drift of scores", caption: "The mean score of each day.", days: names, most: 1, least: 0,
      series: [column(days, "mean score", (row) => row.score_mean)],
    }),
    chart({
      title: "Drift of pictures", caption: "The mean novelty of each day: how unlike the training radiographs the pictures are. Above 1 a picture is not scored.", days: names, least: 0,
      series: [column(days, "mean novelty", (row) => row.novelty_mean)],
    }),
    signs(drift.measures),
    bars({
      title: "Scores", caption: "How many exams have which score. The model's probability, not a diagnosis.", heads: ["Score", "exams"], mono: true,
      rows: scores.map((count, at) => [`${(at / scores.length).toFixed(1)} to ${((at + 1) / scores.length).toFixed(1)}`, count]), lengths: shares(scores),
    }),
    bars({
      title: "Waiting until first read", caption: "By the urgency that the exam has. The bar is the median of those that were read; the last two columns are of exams that still wait.",
      heads: ["Urgency", "read", "median", "90 %", "longest", "now unread", "longest"], empty: "No exam came in these days.", lengths: shares(waits.map((row) => row.median_minutes)),
      rows: waits.map((row) => [row.urgency, row.read, ...[row.median_minutes, row.p90_minutes, row.longest_minutes].map(minutes), row.unread, minutes(row.waiting_minutes)]),
    }),
    bars({
      title: "Consoles", caption: "The bar is the flag rate. One console that stands out may have another exposure or another kind of patients. Agreement is of standing readings with the flag.",
      heads: ["Console", "flag rate", "received", "scored", "not scored", "read", "agree"], empty: "No console has sent.", lengths: perConsole.map((row) => share(row.flagged, row.scored)),
      rows: perConsole.map((row) => [row.console, percent(share(row.flagged, row.scored)), row.received, row.scored, row.not_scored, row.read, percent(share(row.agreed, row.read))]),
    }),
    bars({
      title: "Why exams were not scored", caption: "By reason.", heads: ["Reason", "exams"], empty: "All were scored.", lengths: shares(Object.values(reasons)),
      rows: Object.entries(reasons).map(([code, count]) => [REASONS[code] ?? code, count]),
    }),
  );
}

const MEASURES = { score: "scores", novelty: "pictures", "not scored": "not scored", findings: "findings", readers: "against readers" };

/** Changes that are certain and that nobody has seen to. */
function alarms(raised) {
  if (!raised.length) return [];
  return [
    table(
      "Alarms of drift", "What came since then is unlike what came before. See what changed at the consoles; then triage drift acknowledge.", ["What", "console", "began", "model"],
      raised.map((alarm) => [MEASURES[alarm.measure] ?? alarm.measure, alarm.console || "all", clock(alarm.began_at, true), alarm.model_version]), "",
    ),
  ];
}

/** How near each measure is to an alarm; a test that may be looked at as often as one likes. */
function signs(measures) {
  const days = [...new Set(measures.flatMap((each) => each.days.map((row) => row.day)))].sort();
  const learning = measures.filter((each) => each.learning > 0).map((each) => MEASURES[each.measure] ?? each.measure);
  const level = (each) => new Map(each.days.map((row) => [row.day, row.level]));
  return chart({
    title: "Signs of drift", least: 0, most: 1.1, days,
    caption: `The highest level of each day since the champion or the last alarm began; 1 is an alarm.${learning.length ? ` Too few yet to tell of: ${learning.join(", ")}.` : ""}`,
    series: measures.map((each) => ({ name: MEASURES[each.measure] ?? each.measure, values: days.map((day) => level(each).get(day) ?? null) })),
  });
}

form.addEventListener("input", load);
form.addEventListener("submit", (event) => event.preventDefault());
load();
