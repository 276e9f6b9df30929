// Single keys, as long as nobody writes and no dialog is open.
export function keys(table) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = event.target;
    if (event.key === "Escape" && at.matches("input, textarea, select")) {
      at.blur();
      event.preventDefault();
      return;
    }
    if (at.matches("textarea, select, input:not([type=radio]):not([type=checkbox])")) return;
    if (document.querySelector("dialog[open]")) return;
    let name = event.shiftKey && event.key.startsWith("Arrow") ? `Shift+${event.key}` : event.key;
    // Caps Lock, left on by somebody, changes no key.
    if (name.length === 1 && event.getModifierState("CapsLock")) name = name.toLowerCase();
    const action = table[name];
    if (!action) return;
    if (name === "Enter" && at.matches("button, a, summary")) return;
    if (event.repeat && !["j", "k"].includes(name) && !name.includes("Arrow")) return;
    if (name.includes("Arrow") && at.matches("input[type=radio]")) return;
    event.preventDefault();
    action(event);
  });
}

let hide;
/** Say something for a while, to eyes and to screen readers. */
export function toast(words, { kind = "", seconds = 5 } = {}) {
  const place = document.getElementById("toast");
  place.dataset.kind = kind;
  place.textContent = words;
  clearTimeout(hide);
  hide = setTimeout(() => (place.textContent = ""), seconds * 1_000);
}
