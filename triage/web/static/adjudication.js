// Exams on which the standing verdicts of two readers differ.
import { get } from "./api.js";
import { toast } from "./keys.js";
import { clock, make, person } from "./words.js";

const body = document.getElementById("body");
try {
  const answer = await get("/api/v1/adjudication");
  const items = answer.items ?? answer;
  document.getElementById("empty").hidden = items.length > 0;
  body.closest("table").hidden = items.length === 0;
  for (const item of items) {
    const verdicts = make("td");
    for (const reading of (item.readings ?? []).filter((each) => !each.withdrawn_at)) {
      verdicts.append(make("div", {}, make("span", { class: `tag ${reading.verdict}`, text: reading.verdict }), ` ${reading.reader} `, make("span", { class: "small", text: reading.comment ?? "" })));
    }
    body.append(
      make(
        "tr",
        {},
        make("td", {}, make("a", { href: `/exams/${encodeURIComponent(item.sop_instance_uid)}`, text: item.accession_number || "open" })),
        make("td", {}, make("span", { class: "name", text: person(item) }), make("span", { class: "id", text: item.patient_id })),
        verdicts,
        make("td", { class: "mono", text: clock(item.received_at, true) }),
      ),
    );
  }
} catch (error) {
  toast(error.message, { kind: "error", seconds: 30 });
}
