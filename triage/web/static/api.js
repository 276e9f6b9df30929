// Requests to the API: JSON in, JSON out, problems (RFC 9457) as exceptions.

export class Problem extends Error {
  constructor(status, detail, kind) {
    super(detail);
    this.status = status;
    this.kind = kind;
  }
}

const proof = document.querySelector('meta[name="csrf-token"]')?.content ?? "";

/** Ask; `{data, etag}` is given. Whoever is signed out goes to the sign-in and comes back. */
export async function ask(method, path, { body, headers = {}, signal } = {}) {
  const options = { method, headers: { Accept: "application/json", ...headers }, signal };
  if (method !== "GET") options.headers["X-CSRF-Token"] = proof;
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The service cannot be reached. Nothing was recorded; try again.", "Offline");
  }
  if (response.status === 401) signIn();
  if (!response.ok) throw await problemOf(response);
  const data = response.status === 204 ? null : await response.json();
  return { data, etag: response.headers.get("ETag") };
}

export async function get(path, parameters = {}, signal) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== "" && value !== null && value !== undefined) query.set(name, value);
  }
  const { data } = await ask("GET", query.size ? `${path}?${query}` : path, { signal });
  return data;
}

export async function problemOf(response) {
  try {
    const told = await response.json();
    return new Problem(response.status, sentence(told.detail ?? told.title), (told.type ?? "").split(":").pop());
  } catch {
    return new Problem(response.status, `The service answered ${response.status}.`, "");
  }
}

export function signIn() {
  location.assign(`/sign-in?next=${encodeURIComponent(location.pathname)}`);
}

export function sentence(text) {
  if (!text) return "";
  const begun = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}
