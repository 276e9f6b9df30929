// The words of the page: what is told of an exam, in one wording everywhere.
import { sentence } from "./api.js";

/** Make an element. Text is only ever set as text: what comes from the wire is not markup. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Why an exam has no score, in a sentence; the row's own explanation says it more exactly. */
export const REASONS = {
  SOP_CLASS_NOT_SCORED: "It is not a kind of image that is scored.",
  FOR_PROCESSING: "The image is for processing, not for presentation.",
  DERIVED: "The image is derived from another.",
  LOCALIZER: "The image is a localizer.",
  MULTI_FRAME: "The image does not have one frame.",
  NOT_CHEST: "Another body part than the chest was examined.",
  BODY_PART_UNKNOWN: "Nothing says that the chest was examined.",
  VIEW_NOT_FRONTAL: "The view is not frontal.",
  VIEW_UNKNOWN: "Nothing says whether the view is frontal.",
  AGE_OUTSIDE_POPULATION: "The model does not know patients of this age.",
  PIXEL_DATA_ABSENT: "The object holds no picture.",
  DATA_SET_UNDECODABLE: "What was sent is damaged and cannot be decoded.",
  PIXEL_DATA_UNDECODABLE: "The picture is damaged and cannot be decoded.",
  PICTURE_TOO_LARGE: "The picture has too many pixels.",
  PICTURE_BLANK: "The picture has one grey and shows nothing.",
  PHOTOMETRIC_UNSUPPORTED: "The picture is neither grey nor RGB.",
  NOT_LIKE_TRAINING: "The picture is unlike the radiographs that the model was trained on.",
  SPOOL_UNREADABLE: "Scoring failed: the image file cannot be read. Read the exam in the PACS.",
  SCORING_ERROR: "Scoring failed with an error. Read the exam in the PACS.",
  WORKER_DIED: "Scoring failed: the program ended while it scored this exam. Read it in the PACS.",
};

/** Codes of notes: a label, a sentence, and whether it is a finding of image quality. */
export const NOTES = {
  AGE_UNKNOWN: ["age unknown", "Neither an age nor a birth date: whether the model knows such patients is unknown."],
  AGE_OUTSIDE_POPULATION: ["age outside", "The model does not know patients of this age; the site chose to score them."],
  BODY_PART_CONFLICT: ["body part?", "Body Part Examined is not the chest; a description says chest."],
  POLARITY_CONFLICT: ["polarity?", "The header contradicts itself on what is black; Photometric Interpretation was trusted."],
  VOI_ABSENT: ["no window", "The header has no window: the stored range was stretched."],
  VOI_INVALID: ["bad window", "The header's window is no window and was ignored."],
  VOI_LUT_INVALID: ["bad LUT", "A broken look-up table was ignored."],
  MODALITY_LUT_INVALID: ["bad LUT", "A broken modality look-up table was ignored."],
  SHUTTER_INVALID: ["bad shutter", "A malformed shutter was ignored."],
  RESCALE_INVALID: ["bad rescale", "A rescale slope of 0 was ignored."],
  NOVELTY_UNCHECKED: ["novelty unchecked", "Whether the picture is like the training radiographs was not measured."],
  DUPLICATE_EXPOSURE: ["sent twice?", "The same picture came under another UID of this patient, too."],
  ROTATED: ["rotated", "The picture seems turned by a quarter or a half.", true],
  MIRRORED: ["mirrored", "The picture seems mirrored, or the heart lies to the right.", true],
  INVERTED: ["inverted", "Black and white seem to be exchanged.", true],
  LUNGS_CUT_OFF: ["lungs cut off", "The chest goes on beyond an edge, or lies far off the middle.", true],
  EXPOSURE_CLIPPED: ["clipped", "A part of the body is saturated black or white.", true],
  BLURRED: ["blurred", "Fine detail is missing.", true],
};

export function why(item) {
  if (item.state === "RECEIVED") return "Waiting to be scored.";
  if (!item.reason) return "";
  return REASONS[item.reason] ?? sentence(item.explanation || item.reason);
}

export function note(code) {
  return NOTES[code] ?? [code.toLowerCase().replaceAll("_", " "), code];
}

/** The one wording of what a score is. */
export function scoreWords(calibrated) {
  return calibrated
    ? "Score: the model's probability of pneumonia, calibrated on held-out patients. Not a diagnosis."
    : "Score: the model's probability of pneumonia, not calibrated: it orders, it does not measure. Not a diagnosis.";
}

export const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));

/** Two digits, and never so rounded that it seems to lie on the other side of the threshold. */
export function probability(value, threshold) {
  for (let digits = 2; digits < 6; digits += 1) {
    const text = value.toFixed(digits);
    if (threshold === null || (Number(text) >= Number(threshold.toFixed(digits))) === (value >= threshold)) return text;
  }
  return String(value);
}

export function duration(seconds) {
  const minutes = Math.max(0, Math.floor(seconds / 60));
  if (minutes < 1) return "< 1 min";
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")}`;
  const days = Math.floor(hours / 24);
  return days < 10 ? `${days} d ${String(hours % 24).padStart(2, "0")} h` : `${days} d`;
}

const two = (value) => String(value).padStart(2, "0");

/** A time of the server, in the reader's zone: the time of today, else day and time. */
export function clock(iso, long = false) {
  if (!iso) return "–";
  const at = new Date(iso);
  const time = `${two(at.getHours())}:${two(at.getMinutes())}`;
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  if (long) return `${day} ${time}:${two(at.getSeconds())}`;
  return at.toDateString() === new Date().toDateString() ? time : `${day.slice(5)} ${time}`;
}

/** PS3.5 6.2, VR AS: 003Y is 3 y. */
export function age(text) {
  const found = /^(\d{3})([DWMY])$/.exec(text ?? "");
  return found ? `${Number(found[1])} ${found[2].toLowerCase()}` : text || "–";
}

/** PS3.5 6.2.1, VR PN: as letters, ideographs and sounds, each FAMILY^GIVEN^MIDDLE^PREFIX^SUFFIX. */
export function person(item) {
  const groups = (item.patient_name ?? "").split("=").map((group) => {
    const [family = "", ...given] = group.split("^").map((part) => part.trim());
    return [family, given.filter(Boolean).join(" ")].filter(Boolean).join(", ");
  });
  return [...new Set(groups.filter(Boolean))].join(" · ") || "no name";
}

export function waited(item, since) {
  return (item.waiting_seconds ?? 0) + (performance.now() - since) / 1000;
}

export function urgency(item) {
  // Only an order is told of a blind exam: that a flag raised it would tell the score.
  if (item.blind && item.urgency !== "STAT") return make("span", { class: "urgency routine" }, make("i", { "aria-hidden": "true" }), "Hidden");
  const kind = item.urgency.toLowerCase();
  const words = { stat: "STAT", high: "High", routine: "Routine" }[kind] ?? item.urgency;
  return make("span", { class: `urgency ${kind}` }, make("i", { "aria-hidden": "true" }), words);
}

export function meter(item) {
  const bar = make("span", { class: "meter", "aria-hidden": "true" });
  // Styles set by script are what the policy allows; attributes in markup are not.
  bar.style.setProperty("--p", item.score);
  bar.style.setProperty("--t", item.threshold);
  return bar;
}

export function pennant() {
  return make("span", { class: "pennant", "aria-hidden": "true" });
}
