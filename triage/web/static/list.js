// The worklist: the API's order, live, with a cursor that no new row moves.
import { get, sentence } from "./api.js";
import { keys, toast } from "./keys.js";
import { listen } from "./live.js";
import { age, clock, duration, make, meter, note, NOTES, pennant, person, probability, scoreWords, urgency, waited, why } from "./words.js";

const PAGE = 100;
const SHOWS = {
  unread: { unread: true },
  flagged: { flagged: true, unread: true },
  unscored: { state: "NOT_SCORED" },
  failed: { state: "FAILED" },
  read: { unread: false },
  all: {},
};

const rows = document.getElementById("rows");
const body = document.getElementById("body");
const above = document.getElementById("above");
const empty = document.getElementById("empty");
const form = document.getElementById("filters");
const known = new Map(); // SOP Instance UID to {item, row, since}
let cursor = null; // SOP Instance UID
let next = null; // of the API: what comes after the last row
let loading = null;
let hidden = 0; // rows that came above what is on the screen

for (const [code, [label, , quality]] of Object.entries(NOTES)) {
  if (quality) form.elements.finding.append(make("option", { value: code, text: label }));
}

function filter() {
  const asked = Object.fromEntries(new FormData(form));
  const { show, received_from: day, ...rest } = asked;
  return { ...SHOWS[show], ...rest, received_from: day ? new Date(`${day}T00:00`).toISOString() : "" };
}

// --- Rows -------------------------------------------------------------------------------

function cells(item, since) {
  const cell = (content, name = "") => make("td", { class: name || false }, ...[content].flat());
  const view = [item.modality, item.view_position].filter(Boolean).join(" ") || "–";
  return [
    cell(urgency(item)),
    cell(item.unread ? duration(waited(item, since)) : "", "number waiting"),
    cell(score(item)),
    cell([make("a", { class: "name", href: address(item), tabindex: "-1", text: person(item) }), make("span", { class: "id", text: item.patient_id })]),
    cell(`${age(item.patient_age)} ${item.patient_sex}`.trim(), "mono"),
    cell(item.accession_number || "–", "mono"),
    cell(view, "mono"),
    make("td", { class: "mono", title: item.calling_ae_title, text: item.calling_ae_title }),
    cell(clock(item.received_at), "mono"),
    cell(remarks(item)),
  ];
}

function score(item) {
  if (item.blind) return make("span", { class: "score" }, make("span", { class: "plain", text: "hidden until read" }));
  if (item.score === null) {
    return make("span", { class: "score" }, make("span", { class: "plain", text: item.state === "RECEIVED" ? "not yet" : "not scored" }));
  }
  const place = make("span", { class: `score${item.flagged ? " flagged" : ""}` }, meter(item), make("b", { text: probability(item.score, item.threshold) }));
  if (item.flagged) place.append(make("span", { class: "flag-word" }, pennant(), "flagged"));
  return place;
}

function remarks(item) {
  const place = make("span", { class: "remarks" });
  const tag = (text, kind, title) => place.append(make("span", { class: `tag ${kind}`, title, text }));
  if (item.state === "CONFIRMED") tag("confirmed", "confirmed");
  if (item.state === "REJECTED") tag("rejected", "");
  if (item.disagreement) tag("readers disagree", "disagree");
  for (const code of item.notes) {
    const [label, words, quality] = note(code);
    if (quality) tag(label, "quality", words);
  }
  const words = item.blind || item.score !== null ? "" : why(item);
  if (words) place.append(make("span", { class: "why", title: item.explanation ? sentence(item.explanation) : words, text: words }));
  return place;
}

const address = (item) => `/exams/${encodeURIComponent(item.sop_instance_uid)}`;

function fill(entry) {
  const { row, item, since } = entry;
  row.replaceChildren(...cells(item, since));
  row.classList.toggle("done", !item.unread);
}

function enter(item, before = null) {
  const row = make("tr", { tabindex: "-1", "aria-selected": "false" });
  row.dataset.uid = item.sop_instance_uid;
  const entry = { item, row, since: performance.now() };
  known.set(item.sop_instance_uid, entry);
  fill(entry);
  body.insertBefore(row, before);
  return entry;
}

// --- Order ------------------------------------------------------------------------------
// The API gives the order; a row that comes live is put where the API would have put it:
// unread first, then by priority in minutes, which all rise together.

const rank = ({ item, since }) => (item.unread ? item.priority + (performance.now() - since) / 60_000 : -Infinity);

function placeOf(entry) {
  for (const row of body.children) {
    const there = known.get(row.dataset.uid);
    if (there === entry) continue;
    if (rank(there) < rank(entry) || (entry.item.unread && !there.item.unread)) return row;
  }
  return null;
}

/** Do something to the rows; the row under the cursor, or the topmost seen, stays where it is. */
function steadily(change) {
  const still = anchor();
  const was = still?.getBoundingClientRect().top;
  change();
  if (!still?.isConnected) return;
  const moved = still.getBoundingClientRect().top - was;
  if (moved) rows.scrollTop += moved;
}

function anchor() {
  const chosen = cursor && known.get(cursor)?.row;
  const frame = rows.getBoundingClientRect();
  if (chosen) {
    const box = chosen.getBoundingClientRect();
    if (box.bottom > frame.top && box.top < frame.bottom) return chosen;
  }
  return rows.scrollTop === 0 ? null : [...body.children].find((row) => row.getBoundingClientRect().top >= frame.top + 30);
}

const normal = (text) => (text ?? "").toLowerCase();

/** Whether a row that comes live is of those that are asked for. */
function wanted(item) {
  const asked = filter();
  if (asked.unread !== undefined && item.unread !== asked.unread) return false;
  if (asked.flagged && !item.flagged && !item.blind) return false;
  if (asked.state && item.state !== asked.state) return false;
  if (asked.modality && item.modality !== asked.modality) return false;
  if (asked.view && item.view_position !== asked.view) return false;
  if (asked.console && item.calling_ae_title !== asked.console) return false;
  if (asked.finding && !item.notes.includes(asked.finding)) return false;
  if (asked.received_from && new Date(item.received_at) < new Date(asked.received_from)) return false;
  const text = normal(asked.q);
  return !text || [item.patient_name, item.patient_id, item.accession_number].some((each) => normal(each).startsWith(text));
}

function came(item) {
  const there = known.get(item.sop_instance_uid);
  if (!there) {
    if (!wanted(item)) return;
    steadily(() => {
      const entry = enter(item);
      const place = placeOf(entry);
      if (place === null && next) {
        // It belongs behind what has been loaded, and comes with that.
        entry.row.remove();
        known.delete(item.sop_instance_uid);
        return;
      }
      body.insertBefore(entry.row, place);
      entry.row.classList.add("fresh");
    });
    const entry = known.get(item.sop_instance_uid);
    if (entry && entry.row.getBoundingClientRect().top < rows.getBoundingClientRect().top + 30) {
      hidden += 1;
      above.replaceChildren(make("span", { text: `↑ ${hidden} new above` }));
      above.hidden = false;
    }
    if (item.flagged && item.unread) toast(`New flagged exam, ${item.urgency}`);
  } else {
    steadily(() => {
      const order = rank(there);
      Object.assign(there, { item, since: performance.now() });
      fill(there);
      if (Math.abs(rank(there) - order) > 1) body.insertBefore(there.row, placeOf(there));
    });
  }
  counted();
}

function counted() {
  const all = known.size;
  document.getElementById("count").textContent = `${all}${next ? " shown, more below" : all === 1 ? " exam" : " exams"}`;
  empty.hidden = all > 0 || loading !== null;
  if (!empty.hidden) empty.textContent = form.elements.show.value === "unread" && !form.elements.q.value ? "Everything is read. New exams appear here by themselves." : "No exam is like this.";
  const scored = [...known.values()].find((entry) => entry.item.score !== null);
  document.getElementById("score-words").textContent = `${scoreWords(scored?.item.calibrated ?? false)} The line in the bar is the threshold.`;
}

// --- Loading ----------------------------------------------------------------------------

async function load(afresh) {
  if (loading && !afresh) return;
  loading?.abort();
  const mine = (loading = new AbortController());
  try {
    const cut = afresh ? null : next;
    const page = await get("/api/v1/items", { ...filter(), limit: PAGE, cursor: cut }, mine.signal);
    if (afresh) {
      known.clear();
      body.replaceChildren();
      rows.scrollTop = 0;
      seen();
    }
    for (const item of page.items) if (!known.has(item.sop_instance_uid)) enter(item);
    next = page.next;
    loading = null;
    if (afresh) select(known.has(cursor) ? cursor : page.items[0]?.sop_instance_uid, { quietly: true });
    counted();
    loadAhead();
  } catch (error) {
    if (error.name === "AbortError") return;
    loading = null;
    toast(error.message, { kind: "error" });
  }
}

/** Go on loading while the end of what there is would soon be seen. */
function loadAhead() {
  if (next && !loading && rows.scrollHeight - rows.scrollTop - rows.clientHeight < 1_500) load(false);
}

// --- The cursor -------------------------------------------------------------------------

function select(uid, { quietly = false } = {}) {
  const old = known.get(cursor)?.row;
  old?.setAttribute("aria-selected", "false");
  old?.setAttribute("tabindex", "-1");
  cursor = uid ?? null;
  keep("cursor", cursor);
  const row = known.get(cursor)?.row;
  if (!row) return;
  row.setAttribute("aria-selected", "true");
  row.setAttribute("tabindex", "0");
  if (quietly) return;
  row.focus({ preventScroll: true });
  row.scrollIntoView({ block: "nearest" });
}

function step(by) {
  const row = known.get(cursor)?.row;
  const there = row ? (by > 0 ? row.nextElementSibling : row.previousElementSibling) : body.firstElementChild;
  if (there) select(there.dataset.uid);
  else if (row) select(cursor);
}

function open(uid = cursor) {
  const entry = known.get(uid);
  if (entry) location.assign(address(entry.item));
}

function seen() {
  hidden = 0;
  above.hidden = true;
}

body.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (event.target.closest("a") || !row) return;
  select(row.dataset.uid);
  open();
});
body.addEventListener("focusin", (event) => {
  const row = event.target.closest("tr");
  if (row && row.dataset.uid !== cursor) select(row.dataset.uid);
});
const top = () => {
  rows.scrollTop = 0;
  seen();
  select(body.firstElementChild?.dataset.uid);
};
above.addEventListener("click", top);
rows.addEventListener(
  "scroll",
  () => {
    if (rows.scrollTop < 20) seen();
    loadAhead();
  },
  { passive: true },
);

// --- Filters: kept for this tab, out of the address, which may name a patient --------------

function keep(name, value) {
  try {
    sessionStorage.setItem(`list.${name}`, JSON.stringify(value));
  } catch {
    // A browser that keeps nothing: the list begins anew each time.
  }
}

function kept(name) {
  try {
    return JSON.parse(sessionStorage.getItem(`list.${name}`));
  } catch {
    return null;
  }
}

for (const [name, value] of Object.entries(kept("form") ?? {})) if (form.elements[name]) form.elements[name].value = value;
cursor = kept("cursor");

let soon;
function changed(wait) {
  keep("form", Object.fromEntries(new FormData(form)));
  keep("filter", filter());
  clearTimeout(soon);
  soon = setTimeout(() => load(true), wait);
}
form.addEventListener("input", (event) => changed(event.target.matches("[type=search], [name=console]") ? 200 : 0));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  changed(0);
  select(cursor);
});

const search = document.getElementById("search");
search.addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  search.blur();
  if (known.has(cursor)) select(cursor);
});

keys({
  j: () => step(1),
  k: () => step(-1),
  ArrowDown: () => step(1),
  ArrowUp: () => step(-1),
  Enter: () => open(),
  g: top,
  "/": () => {
    search.focus();
    search.select();
  },
});

setInterval(() => {
  for (const entry of known.values()) {
    if (!entry.item.unread) continue;
    const words = duration(waited(entry.item, entry.since));
    const cell = entry.row.querySelector(".waiting");
    if (cell.textContent !== words) cell.textContent = words;
  }
}, 10_000);

keep("filter", filter());
counted();
load(true);
listen(came, () => load(true));
