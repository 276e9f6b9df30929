// One exam after the other: picture, score, verdict. The next one is fetched while this is read.
import { ask, get, sentence } from "./api.js";
import { keys, toast } from "./keys.js";
import { listen } from "./live.js";
import { picture, Viewer } from "./viewer.js";
import { age, clock, duration, make, meter, note, number, pennant, person, probability, scoreWords, urgency, waited, why } from "./words.js";

const page = document.getElementById("exam");
const at = (id) => document.getElementById(id);
const reads = page.dataset.reader === "yes";
const path = (uid, rest = "") => `/api/v1/items/${encodeURIComponent(uid)}${rest}`;

let uid = null;
let item = null;
let readings = [];
let events = [];
let etag = null;
let since = 0;
let busy = false;
let heatShown = false;
let opened = 0; // counts exams, so that what comes late for an earlier one is left aside
const passed = new Set(kept("passed") ?? []);
let last = kept("last"); // the reading that may still be undone: {uid, id, until, verdict}

function kept(name, of = "exam") {
  try {
    return JSON.parse(sessionStorage.getItem(`${of}.${name}`) ?? "null");
  } catch {
    return null;
  }
}

function keep(name, value) {
  try {
    sessionStorage.setItem(`exam.${name}`, JSON.stringify(value));
  } catch {
    // Kept for as long as the page is open, then.
  }
}

// --- The picture ------------------------------------------------------------------------

const viewer = new Viewer(
  at("canvas"),
  ({ center, width, zoom, inverted, marking }) => {
    const deep = width >= 20 ? 0 : 2;
    at("readout").value = `C ${center.toFixed(deep).padStart(6)}   W ${width.toFixed(deep).padStart(6)}   ${String(Math.round(zoom * 100)).padStart(3)} %`;
    at("invert").setAttribute("aria-pressed", inverted);
    at("mark").setAttribute("aria-pressed", marking);
  },
  () => marked(),
);

function marked() {
  at("mark-words").textContent = viewer.mark ? "The place that is marked goes with a confirmation. Delete removes it." : "";
}

async function showPicture(mine) {
  at("stage-words").textContent = "Loading the radiograph";
  viewer.clear();
  try {
    const shown = await picture(uid);
    if (mine !== opened) return;
    viewer.show(shown);
    at("stage-words").textContent = "";
    page.dataset.shown = uid;
  } catch (error) {
    if (mine === opened) at("stage-words").textContent = error.message || "The radiograph cannot be shown.";
  }
}

async function toggleHeat() {
  if (heatShown) return hideHeat();
  if (!item || item.blind) return toast("There is no heat map before your verdict: it would tell the score.");
  if (item.score === null) return toast("No score, no heat map.");
  const mine = opened;
  const button = at("heat");
  button.setAttribute("aria-busy", "true");
  at("heat-words").hidden = false;
  at("heat-words").textContent = "Making the heat map";
  try {
    const response = await fetch(`/exams/${encodeURIComponent(uid)}/heat-map`);
    if (!response.ok) throw await (await import("./api.js")).problemOf(response);
    const legend = response.headers.get("X-Heat-Map-Legend");
    const bitmap = await createImageBitmap(await response.blob());
    if (mine !== opened) return;
    heatShown = true;
    viewer.setHeat(bitmap);
    button.setAttribute("aria-pressed", "true");
    at("heat-words").textContent = `${legend}. It outlines no disease and proves nothing.`;
  } catch (error) {
    if (mine === opened) at("heat-words").textContent = error.message;
  } finally {
    button.removeAttribute("aria-busy");
  }
}

function hideHeat() {
  heatShown = false;
  viewer.setHeat(null);
  at("heat").setAttribute("aria-pressed", "false");
  at("heat-words").hidden = true;
}

// --- What is told of the exam -----------------------------------------------------------

async function open(wanted, { push = true } = {}) {
  const mine = (opened += 1);
  uid = wanted;
  item = etag = null;
  hideHeat();
  viewer.setMarking(false);
  at("comment").value = "";
  at("adjudicate").checked = false;
  // Nothing of the exam before may stand beside the picture of this one.
  delete page.dataset.shown;
  delete page.dataset.told;
  if (push) history.pushState({ uid }, "", `/exams/${encodeURIComponent(uid)}`);
  const painted = showPicture(mine);
  await refresh(mine);
  if (mine !== opened || !item) return;
  others(mine);
  await painted;
  prefetch(mine);
}

async function refresh(mine = opened) {
  try {
    const answer = await ask("GET", path(uid));
    if (mine !== opened) return;
    ({ item, readings, events } = answer.data);
    etag = answer.etag;
    since = performance.now();
    tell();
  } catch (error) {
    if (mine === opened) toast(error.message, { kind: "error", seconds: 10 });
  }
}

function tell() {
  at("patient").textContent = person(item);
  at("patient-line").textContent = [item.patient_id || "no patient ID", age(item.patient_age), item.patient_sex].filter(Boolean).join(" · ");
  at("score-card").classList.toggle("flagged", Boolean(item.flagged));
  at("score").replaceChildren(...scoreParts());
  tellReadings();
  tellFacts();
  tellVersion();
  at("journal").replaceChildren(
    ...events.map((event) =>
      make("li", {}, make("span", { text: event.action.toLowerCase().replaceAll("_", " ") }), make("span", { class: "when", text: clock(event.at, true) }), make("span", { class: "words", text: event.actor })),
    ),
  );
  tellVerdicts();
  page.dataset.told = uid;
}

function scoreParts() {
  const top = make("div", { class: "big-score" });
  if (item.blind) {
    top.append(make("span", { class: "veiled", text: "hidden until your verdict" }));
    return [top, make("p", { class: "small", text: "You read this exam without the score, so that the model can be measured against you. Score, threshold and heat map are shown after it." })];
  }
  if (item.score === null) {
    const parts = [make("p", { class: "why", text: why(item) })];
    if (item.explanation && item.state !== "FAILED") parts.push(make("p", { class: "small", text: sentence(item.explanation) }));
    parts.push(make("p", { class: "small", text: "An exam without a score is not “normal”: it stands in the list by its waiting time." }));
    return parts;
  }
  top.append(make("b", { text: probability(item.score, item.threshold) }));
  top.append(item.flagged ? make("span", { class: "flag-word" }, pennant(), "Flagged") : make("span", { class: "small", text: "not flagged" }));
  return [
    top,
    meter(item),
    make("p", { class: "small", text: `Threshold ${number(item.threshold, 3)}. ${scoreWords(item.calibrated)}` }),
  ];
}

function tellReadings() {
  at("readings").replaceChildren(
    ...readings.map((reading) => {
      const gone = Boolean(reading.withdrawn_at);
      const words = [
        reading.adjudicates ? "Settles the disagreement." : "",
        reading.blinded ? "Read without the score." : "",
        reading.location ? "With a marked place." : "",
        reading.comment ?? "",
        gone ? "Withdrawn." : "",
      ];
      return make(
        "li",
        { class: gone ? "gone" : false },
        make("span", { class: gone ? "withdrawn" : false, text: `${reading.reader}: ${reading.verdict}` }),
        make("span", { class: "when", text: clock(reading.read_at) }),
        make("span", { class: "words", text: words.filter(Boolean).join(" ") }),
      );
    }),
  );
  if (!readings.length) at("readings").append(make("li", { class: "small", text: item.blind ? "Not shown before your verdict." : "Nobody has read it yet." }));
}

function tellFacts() {
  const facts = [
    ["Urgency", urgency(item)],
    ["Waiting", item.unread ? duration(waited(item, since)) : "read", true],
    ["Accession", item.accession_number || "–", true],
    ["View", [item.modality, item.body_part, item.view_position].filter(Boolean).join(" ") || "–", true],
    ["Console", item.calling_ae_title, true],
    ["Received", clock(item.received_at, true), true],
    ["Scored", clock(item.scored_at, true), true],
    ["Instance", make("code", { text: item.sop_instance_uid })],
  ];
  const place = at("facts");
  place.replaceChildren();
  for (const [name, value, mono] of facts) place.append(make("dt", { text: name }), make("dd", { class: mono ? "mono" : false }, value));
  for (const code of item.notes) {
    const [label, words, quality] = note(code);
    place.append(make("dt", { text: quality ? "Quality" : "Note" }), make("dd", {}, make("span", { class: `tag${quality ? " quality" : ""}`, text: label }), ` ${words}`));
  }
  const template = page.dataset.viewerUrl;
  at("viewer-line").hidden = !template;
  if (template) {
    at("viewer").href = template // both are percent-encoded: they come from the wire
      .replaceAll("{study_instance_uid}", encodeURIComponent(item.study_instance_uid))
      .replaceAll("{accession_number}", encodeURIComponent(item.accession_number));
  }
}

function tellVerdicts() {
  const may = reads && item.state !== "RECEIVED" && (item.score !== null || item.blind);
  const own = readings.filter((reading) => reading.reader === page.dataset.name && !reading.withdrawn_at).at(-1);
  for (const [id, verdict] of [["confirm", "confirmed"], ["reject", "rejected"]]) {
    at(id).disabled = !may || busy;
    at(id).setAttribute("aria-pressed", own?.verdict === verdict);
  }
  at("comment").disabled = !may;
  at("adjudicate-label").hidden = !item.disagreement;
  const words = at("mark-words");
  if (!reads) words.textContent = "Your account may look, not read.";
  else if (!may) words.textContent = "Without a score there is no finding to confirm or reject. Read it as always.";
  else marked();
  tellUndo();
}

function tellUndo() {
  const left = last ? Math.ceil((last.until - Date.now()) / 1000) : 0;
  at("undo").hidden = left <= 0;
  if (left > 0) at("undo").replaceChildren(`Undo “${last.verdict}” `, make("span", { class: "number", text: `${left} s ` }), make("kbd", { text: "u" }));
}

async function others(mine) {
  try {
    const answer = await get(path(uid, "/priors"));
    if (mine !== opened) return;
    const priors = answer.items;
    at("priors").replaceChildren(
      ...priors.map((prior) =>
        make(
          "li",
          {},
          make("a", { href: `/exams/${encodeURIComponent(prior.sop_instance_uid)}`, text: clock(prior.received_at, true).slice(0, 16) }),
          make("span", { class: "small", text: [prior.modality, prior.view_position].filter(Boolean).join(" ") }),
          prior.received_at > item.received_at ? make("span", { class: "tag", text: "later" }) : null,
          make("span", { class: "small", text: prior.blind ? "" : prior.score === null ? "not scored" : `score ${probability(prior.score, prior.threshold)}${prior.flagged ? ", flagged" : ""}` }),
        ),
      ),
    );
    if (!priors.length) at("priors").append(make("li", { class: "small", text: item.patient_id ? "None was received here." : "Without a patient ID none can be found." }));
  } catch (error) {
    at("priors").replaceChildren(make("li", { class: "small", text: error.message }));
  }
}

function tellVersion() {
  at("model-card").hidden = !item.model_version;
  if (!item.model_version || at("model-name").textContent === item.model_version) return;
  at("model-name").textContent = item.model_version;
  at("model").replaceChildren();
  if (at("model-card").open) tellModel();
}

async function tellModel() {
  if (at("model").childElementCount || !item?.model_version) return;
  try {
    const model = await get(`/api/v1/models/${encodeURIComponent(item.model_version)}`);
    const measured = model.metrics?.held_out ?? {};
    const facts = make("dl", { class: "facts" });
    const fact = (name, value) => value && facts.append(make("dt", { text: name }), make("dd", { text: value }));
    fact("Output", model.output);
    fact("Threshold", `${model.threshold}: ${model.threshold_rule ?? ""}`);
    fact("Trained on", model.population?.description);
    fact("Made", clock(model.created_at, true));
    const table = make("table", { class: "plain" }, make("thead", {}, make("tr", {}, make("th", { scope: "col", text: "On held-out patients" }), make("th", { scope: "col", class: "number", text: "value" }), make("th", { scope: "col", class: "number", text: model.metrics?.interval?.split(",")[0] ?? "interval" }))));
    const rows = make("tbody");
    for (const [name, { value, low, high }] of Object.entries(measured).filter(([, each]) => each && typeof each.value === "number")) {
      rows.append(make("tr", {}, make("td", { text: name }), make("td", { class: "number", text: number(value, 3) }), make("td", { class: "number", text: `${number(low, 3)} to ${number(high, 3)}` })));
    }
    table.append(rows);
    at("model").replaceChildren(facts, ...(rows.childElementCount ? [table] : []), make("p", { class: "small", text: "On the patients of another hospital it may do worse. Only a test on the site's own radiographs counts." }));
  } catch (error) {
    at("model").replaceChildren(make("p", { class: "small", text: error.message }));
  }
}
at("model-card").addEventListener("toggle", () => at("model-card").open && tellModel());

// --- Reading ----------------------------------------------------------------------------

async function read(verdict) {
  const button = at(verdict === "confirmed" ? "confirm" : "reject");
  if (!item) return toast("The exam is still loading.");
  if (busy || button.disabled) return;
  busy = true;
  const mine = opened;
  const body = { verdict };
  if (at("comment").value.trim()) body.comment = at("comment").value.trim();
  if (viewer.mark && verdict === "confirmed") body.location = viewer.mark;
  if (item.disagreement && at("adjudicate").checked) body.adjudicates = true;
  try {
    const { data } = await ask("POST", path(uid, "/readings"), { body, headers: { "If-Match": etag, "Idempotency-Key": unique() } });
    last = { uid, id: data.reading.id, verdict, until: Date.now() + 1000 * (data.undo_seconds - 1) };
    keep("last", last);
    toast(`${verdict === "confirmed" ? "Confirmed" : "Rejected"}. u undoes it within a minute; n goes on.`);
    at("comment").value = "";
    at("adjudicate").checked = false;
  } catch (error) {
    toast(error.status === 412 ? "Meanwhile something happened to this exam: look at its score and readings, then give your verdict again." : error.message, { kind: "error", seconds: 10 });
  } finally {
    busy = false;
  }
  if (mine !== opened) return;
  await refresh();
  prefetch(mine);
}

function unique() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function undo() {
  if (busy || !last) return toast("Nothing of yours can be undone.");
  busy = true;
  const { uid: its, id, verdict } = last;
  try {
    await ask("DELETE", path(its, `/readings/${encodeURIComponent(id)}`));
    toast(`Withdrawn: ${verdict}.`);
    passed.delete(its);
    last = null;
    keep("last", null);
  } catch (error) {
    if (error.status && error.status !== 429) last = null;
    keep("last", last);
    toast(error.message, { kind: "error", seconds: 8 });
  } finally {
    busy = false;
  }
  if (its !== uid) await open(its);
  else await refresh();
}

// --- The next exam ----------------------------------------------------------------------

async function upcoming() {
  const filter = { ...(kept("filter", "list") ?? {}), unread: true, limit: 30 };
  delete filter.state;
  const { items } = await get("/api/v1/items", filter);
  return items.find((each) => each.sop_instance_uid !== uid && !passed.has(each.sop_instance_uid)) ?? null;
}

async function prefetch(mine) {
  try {
    const coming = await upcoming();
    if (coming && mine === opened) await picture(coming.sop_instance_uid);
  } catch {
    // What could not be fetched ahead is fetched, and complained of, when it is its turn.
  }
}

async function goOn() {
  passed.add(uid);
  keep("passed", [...passed].slice(-500));
  try {
    const coming = await upcoming();
    if (coming) return await open(coming.sop_instance_uid);
    passed.clear();
    keep("passed", []);
    toast("No other exam is waiting to be read.");
  } catch (error) {
    toast(error.message, { kind: "error" });
  }
}

// --- Hands ------------------------------------------------------------------------------

const pan = (across, down) => () => (viewer.marking ? viewer.moveAim(-across / 5, -down / 5) : viewer.picture && viewer.pan(across, down));
const mark = () => viewer.picture && viewer.setMarking(!viewer.marking);
keys({
  c: () => read("confirmed"),
  r: () => read("rejected"),
  u: undo,
  n: goOn,
  h: toggleHeat,
  i: () => viewer.invert(),
  m: mark,
  0: () => viewer.reset(),
  "+": () => viewer.zoom(1.25),
  "=": () => viewer.zoom(1.25),
  "-": () => viewer.zoom(0.8),
  b: () => location.assign("/"),
  v: () => (at("viewer-line").hidden ? toast("No viewer of the hospital is set up: viewer_url.") : at("viewer").click()),
  t: () => at("comment").focus(),
  ArrowLeft: pan(40, 0),
  ArrowRight: pan(-40, 0),
  ArrowUp: pan(0, 40),
  ArrowDown: pan(0, -40),
  "Shift+ArrowUp": () => viewer.window(0.02, 0),
  "Shift+ArrowDown": () => viewer.window(-0.02, 0),
  "Shift+ArrowRight": () => viewer.window(0, 0.08),
  "Shift+ArrowLeft": () => viewer.window(0, -0.08),
  Enter: () => viewer.marking && viewer.takeAim(),
  Escape: () => viewer.setMarking(false),
  Delete: () => {
    viewer.setMark(null);
    marked();
  },
});
at("confirm").addEventListener("click", () => read("confirmed"));
at("reject").addEventListener("click", () => read("rejected"));
at("undo").addEventListener("click", undo);
at("next").addEventListener("click", goOn);
at("heat").addEventListener("click", toggleHeat);
at("invert").addEventListener("click", () => viewer.invert());
at("mark").addEventListener("click", mark);
at("reset").addEventListener("click", () => viewer.reset());
addEventListener("popstate", (event) => event.state?.uid && open(event.state.uid, { push: false }));

setInterval(() => {
  if (item) tellUndo();
}, 1_000);
setInterval(() => item && tellFacts(), 15_000);

history.replaceState({ uid: page.dataset.uid }, "");
open(page.dataset.uid, { push: false });
listen(
  (moved) => {
    // Another one's verdict, or a score that came: what is on the screen is told anew.
    if (moved.sop_instance_uid === uid && !busy) refresh();
  },
  () => refresh(),
);
