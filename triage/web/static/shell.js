// What every page has: the help, and a word to who is signed out elsewhere.
import { keys } from "./keys.js";

const help = document.getElementById("help");
document.getElementById("help-open")?.addEventListener("click", () => help.showModal());
keys({ "?": () => help.showModal() });
