// The operator's view: what waits, what is parked, what is full. Asked for anew while it is open.
import { get } from "./api.js";
import { toast } from "./keys.js";
import { clock, duration, make } from "./words.js";

const place = document.getElementById("panels");

const part = (title, ...content) => make("section", { class: "part" }, make("h2", { text: title }), ...content);
const state = (good, words) => make("span", { class: `state ${good ? "good" : "bad"}` }, make("i", { "aria-hidden": "true" }), words);
const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(1)} GB`;

function facts(pairs) {
  const list = make("dl", { class: "facts" });
  for (const [name, value] of pairs) list.append(make("dt", { text: name }), make("dd", { class: "mono" }, value));
  return list;
}

function deliveries(backlogs) {
  if (!backlogs.length) return make("p", { class: "small", text: "No destination has anything waiting or parked." });
  const names = Object.keys(backlogs[0]).filter((name) => name !== "destination");
  const shown = (value) => (typeof value === "string" && /^\d{4}-\d\d-\d\dT/.test(value) ? clock(value, true) : value ?? "–");
  return make(
    "table",
    { class: "plain" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col", text: "Destination" }), ...names.map((name) => make("th", { scope: "col", class: "number", text: name.replaceAll("_", " ") })))),
    make("tbody", {}, ...backlogs.map((row) => make("tr", {}, make("th", { scope: "row", text: row.destination }), ...names.map((name) => make("td", { class: "number", text: String(shown(row[name])) }))))),
  );
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
  const parked = found.deliveries.reduce((sum, row) => sum + (row.parked ?? 0), 0);
  const used = make("span", { class: "bar-row", "aria-hidden": "true" });
  used.style.setProperty("--share", 1 - free / total);
  place.replaceChildren(
    part(
      "Scoring",
      state(waits < 120, waits < 120 ? "Keeps up" : `Behind: the oldest exam waits ${duration(waits)} for its score`),
      facts([["Champion", found.model_version ?? "none"], ["Waiting for a score", String(counts.RECEIVED ?? 0)], ["Failed", String(counts.FAILED ?? 0)]]),
    ),
    part("Exams by state", facts(Object.entries(counts).map(([name, count]) => [name, String(count)]))),
    part(
      "Deliveries",
      state(!parked, parked ? `${parked} parked: triage deliveries list, then retry` : "None is parked"),
      deliveries(found.deliveries),
    ),
    part("Challenger in shadow", ...shadow(found.shadow)),
    part("Drift", state(!found.drift.length, found.drift.length ? `${found.drift.length} unacknowledged: see the dashboard, then triage drift acknowledge` : "No alarm")),
    part("Storage Commitment", Object.keys(found.commitments).length ? facts(Object.entries(found.commitments).map(([name, count]) => [name, String(count)])) : make("p", { class: "small", text: "Nobody has asked for it." })),
    part("Disk of the home", state(free / total > 0.1, `${gigabytes(free)} of ${gigabytes(total)} free`), make("div", { class: "gauge" }, used)),
  );
  document.getElementById("as-of").textContent = `As of ${clock(new Date().toISOString(), true)}`;
}

load();
setInterval(() => document.visibilityState === "visible" && load(), 10_000);
