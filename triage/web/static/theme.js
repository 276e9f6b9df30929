// Before the first paint: the theme that was chosen, else the dark one, as reading rooms are dark.
// Not a module: those run after the first paint.
(() => {
  const names = ["dark", "light", "system"];
  const root = document.documentElement;
  const read = () => {
    try {
      const kept = localStorage.getItem("theme");
      return names.includes(kept) ? kept : "dark";
    } catch {
      return "dark"; // a browser that keeps nothing
    }
  };
  const brighter = matchMedia("(prefers-color-scheme: light)");
  const apply = (name) => {
    root.dataset.theme = name === "system" ? (brighter.matches ? "light" : "dark") : name;
    const button = document.getElementById("theme");
    if (button) {
      button.textContent = name[0].toUpperCase() + name.slice(1);
      button.setAttribute("aria-label", `Theme: ${name}`);
    }
    root.dispatchEvent(new Event("themechange"));
  };
  apply(read());
  brighter.addEventListener("change", () => apply(read()));
  document.addEventListener("DOMContentLoaded", () => {
    apply(read());
    document.getElementById("theme")?.addEventListener("click", () => {
      const next = names[(names.indexOf(read()) + 1) % names.length];
      try {
        localStorage.setItem("theme", next);
      } catch {
        return;
      }
      apply(next);
    });
  });
})();
