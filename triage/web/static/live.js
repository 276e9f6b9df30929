// Rows as they move, by server-sent events. The browser reconnects by itself and says where it was.
const WORDS = { live: "Live", wait: "Connecting", lost: "Not live: trying" };
const SILENCE = 45_000;

/** Hear of rows; `onReturn` after a gap in which more may have happened than is told. */
export function listen(onItem, onReturn = () => {}) {
  const place = document.getElementById("live");
  const words = document.getElementById("live-words");
  let source, heard, silent, lost = "";
  const say = (state) => {
    if (!place || place.dataset.state === state) return;
    place.dataset.state = state;
    words.textContent = WORDS[state];
  };
  const alive = () => {
    heard = performance.now();
    say("live");
  };
  const open = () => {
    source = new EventSource("/api/v1/live");
    source.addEventListener("open", () => {
      alive();
      // After a gap the browser says what it saw last and is told the rest; a new source cannot.
      if (lost === "anew") onReturn();
      lost = "";
    });
    source.addEventListener("item", (event) => {
      alive();
      onItem(JSON.parse(event.data));
    });
    source.addEventListener("heartbeat", alive);
    source.addEventListener("reset", onReturn); // more was missed than is told
    source.addEventListener("error", () => {
      say("lost");
      // What is refused is closed for good: a session that ended, or a service that starts anew.
      if (source.readyState !== EventSource.CLOSED) return;
      lost = "anew";
      setTimeout(open, 3_000);
    });
  };
  say("wait");
  open();
  silent = setInterval(() => {
    if (performance.now() - heard > SILENCE && source.readyState === EventSource.OPEN) {
      source.close();
      lost = "anew";
      say("lost");
      open();
    }
  }, 10_000);
  addEventListener("pagehide", () => {
    clearInterval(silent);
    source.close();
  });
  addEventListener("pageshow", (event) => event.persisted && location.reload());
}
