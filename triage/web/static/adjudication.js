// Exams on which the standing verdicts of two readers differ.
import { get } from "./api.js";
import { keys, toast } from "./keys.js";
import { clock, make, person } from "./words.js";

const body = document.getElementById("body");
try {
  const { items, next } = await get("/api/v1/adjudication", { limit: 200 });
  document.getElementById("empty").hidden = items.length > 0;
  body.closest("table").hidden = items.length === 0;
  for (const item of items) {
    const address = `/exams/${encodeURIComponent(item.sop_instance_uid)}`;
    body.append(
      make(
        "tr",
        {},
        make("td", { class: "mono" }, make("a", { href: address, text: item.accession_number || "no accession" })),
        make("td", {}, make("span", { class: "name", text: person(item) }), make("span", { class: "id", text: item.patient_id })),
        make("td", {}, make("span", { class: "tag disagree", text: "readers disagree" }), ` ${item.readings_count} readings`),
        make("td", { class: "mono", text: [item.modality, item.view_position].filter(Boolean).join(" ") }),
        make("td", { class: "mono", text: clock(item.received_at, true) }),
      ),
    );
  }
  if (next) toast("There are more than 200; the first in reading order are shown.", { seconds: 20 });
} catch (error) {
  toast(error.message, { kind: "error", seconds: 30 });
}

function step(by) {
  const links = [...body.querySelectorAll("a")];
  const now = links.indexOf(document.activeElement);
  links[now < 0 ? 0 : Math.min(links.length - 1, Math.max(0, now + by))]?.focus();
}

keys({ j: () => step(1), k: () => step(-1) });
