// The operator's view: what waits, what is parked, what is full. Asked for anew while it is open.
import { get } from "./api.js";
import { toast } from "./keys.js";
import { clock, duration, make } from "./words.js";

const place = document.getElementById("panels");

const part = (title, ...content) => make("section", { class: "part" }, make("h2", { text: title }), ...content);
const wide = (...content) => {
  const made = part(...content);
  made.classList.add("wide");
  return made;
};
const state = (good, words) => make("span", { class: `state ${good ? "good" : "bad"}` }, make("i", { "aria-hidden": "true" }), words);
const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(1)} GB`;

function facts(pairs) {
  const list = make("dl", { class: "facts" });
  for (const [name, value] of pairs) list.append(make("dt", { text: name }), make("dd", { class: "mono" }, value));
  return list;
}

/** A table whose first column names the rows; columns are [heading, of a row, whether a number]. */
function table(title, rows, columns) {
  const number = (each) => (each[2] ? "number" : false);
  return make(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
    make(
      "table",
      { class: "plain tight" },
      make("thead", {}, make("tr", {}, ...columns.map((each) => make("th", { scope: "col", class: number(each), text: each[0] })))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...columns.map((each, at) => make(at ? "td" : "th", { scope: at ? false : "row", class: number(each) }, each[1](row) ?? "–"))))),
    ),
  );
}

const DOES = { receive: "receives", score: "scores", deliver: "delivers results", commit: "commits storage", web: "serves this page", retrain: "retrains", observe: "observes" };

function parts({ parts: running, missing }) {
  const silent = running.filter((each) => !each.runs);
  const words = [
    ...missing.map((role) => `Nobody ${DOES[role] ?? role}`),
    ...silent.filter((each) => !missing.includes(each.role)).map((each) => `${each.role} on ${each.node} is silent`),
  ];
  return part(
    "Parts",
    state(!words.length, words.length ? `${words.join("; ")}: see the log of triage serve` : "All run"),
    ...(running.length
      ? [table("Parts", running, [["Part", (row) => row.role], ["node", (row) => row.node], ["", (row) => state(row.runs, row.runs ? "runs" : "silent")], ["since", (row) => clock(row.runs ? row.began_at : row.seen_at, true), true], ["version", (row) => row.version, true]])]
      : []),
  );
}

function deliveries(backlogs) {
  if (!backlogs.length) return make("p", { class: "small", text: "No destination has anything waiting or parked." });
  return table("Destinations", backlogs, [["Destination", (row) => row.destination], ["waiting", (row) => String(row.pending), true], ["parked", (row) => String(row.parked), true], ["oldest waits since", (row) => row.oldest && clock(row.oldest, true), true], ["why", (row) => row.error]]);
}

function parked(rows) {
  if (!rows.length) return [];
  const exam = (row) => make("a", { href: `/exams/${encodeURIComponent(row.sop_instance_uid)}`, class: "mono", text: row.sop_instance_uid });
  return [
    wide(
      "Parked deliveries",
      make("p", { class: "small", text: "The newest, at most 50. They stay until triage deliveries retry makes them wait again." }),
      table("Parked deliveries", rows, [["No.", (row) => String(row.id)], ["destination", (row) => row.destination], ["what", (row) => row.kind.toLowerCase().replaceAll("_", " ")], ["exam", exam], ["attempts", (row) => String(row.attempts), true], ["why", (row) => row.error]]),
    ),
  ];
}

function shadow(seen) {
  if (!seen) return [make("p", { class: "small", text: "None: the gate has to prove one first." })];
  const share = seen.agreement === null ? "–" : `${(100 * seen.agreement).toFixed(1)} %`;
  return [
    facts([
      ["Version", seen.version], ["Exams", String(seen.exams)], ["Not scored by it", String(seen.failed)], ["Same flag as the champion", share],
      ["Flags gained, lost", `${seen.gained}, ${seen.lost}`], ["Read; flag as the readers", `${seen.read}; ${seen.right}, champion ${seen.champion_right}`], ["Milliseconds", seen.milliseconds.toFixed(1)],
    ]),
  ];
}

async function load() {
  let found;
  try {
    found = await get("/api/v1/operations");
  } catch (error) {
    return toast(error.message, { kind: "error", seconds: 20 });
  }
  const { counts, oldest_waiting: oldest, disk_free_bytes: free, disk_total_bytes: total } = found;
  const waits = oldest ? (Date.now() - Date.parse(oldest)) / 1000 : 0;
  const given = found.deliveries.reduce((sum, row) => sum + row.parked, 0);
  const used = make("span", { class: "bar-row", "aria-hidden": "true" });
  used.style.setProperty("--share", 1 - free / total);
  place.replaceChildren(
    parts(found),
    part(
      "Scoring",
      state(waits < 120, waits < 120 ? "Keeps up" : `Behind: the oldest exam waits ${duration(waits)} for its score`),
      facts([["Champion", found.model_version ?? "none"], ["Waiting for a score", String(counts.RECEIVED ?? 0)], ["Failed", String(counts.FAILED ?? 0)]]),
    ),
    part("Exams by state", facts(Object.entries(counts).map(([name, count]) => [name, String(count)]))),
    part(
      "Deliveries",
      state(!given, given ? `${given} parked: mend why, then triage deliveries retry --all` : "None is parked"),
      deliveries(found.deliveries),
    ),
    ...parked(found.parked),
    part("Challenger in shadow", ...shadow(found.shadow)),
    part("Drift", state(!found.drift.length, found.drift.length ? `${found.drift.length} unacknowledged: see the dashboard, then triage drift acknowledge` : "No alarm")),
    part("Storage Commitment", Object.keys(found.commitments).length ? facts(Object.entries(found.commitments).map(([name, count]) => [name, String(count)])) : make("p", { class: "small", text: "Nobody has asked for it." })),
    part("Disk of the home", state(free / total > 0.1, `${gigabytes(free)} of ${gigabytes(total)} free`), make("div", { class: "gauge" }, used)),
  );
  document.getElementById("as-of").textContent = `As of ${clock(new Date().toISOString(), true)}`;
}

load();
setInterval(() => document.visibilityState === "visible" && load(), 10_000);
