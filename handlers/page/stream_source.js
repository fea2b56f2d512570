// The connection for GET /stream: what it says goes to a function. One that is lost is made anew here,
// in growing pauses: browsers do so at a steady pace, all tabs at once.

const EVENTS = ["fresh", "runs", "files", "progress", "queue"];
/** The first pause before a lost connection is made anew, and the longest, milliseconds. */
const FIRST_MS = 1000, LONGEST_MS = 30_000;
/** The first pause after a refusal: by then a tab knows whether it may ask at all. */
const REFUSED_MS = 8000;
/** A connection that held for so long was a good one: the next pause is a short one again. */
const STEADY_MS = 10_000;
/** The server says something at least every 15 s: one that is silent for so long is gone. */
const SILENT_MS = 40_000, LOOK_MS = 5000;

/**
 * @typedef {(event: string, data: any) => void} Tell
 * "open": the connection is there. "lost": it is not, with whether the server refused it.
 */

/**
 * Open a stream, and keep it open.
 * @param {Tell} tell
 * @returns {() => void} closes it
 */
export function openStream(tell) {
  /** @type {EventSource | null} */
  let source = null;
  let last = "", pause = FIRST_MS, openedAt = 0, heardAt = 0, timer = 0;

  const lose = (/** @type {boolean} */ refused) => {
    source?.close(); // or the browser asks as well
    source = null;
    if (openedAt !== 0 && Date.now() - openedAt > STEADY_MS) pause = FIRST_MS;
    openedAt = 0;
    tell("lost", refused);
    if (refused) pause = Math.max(pause, REFUSED_MS);
    timer = setTimeout(open, pause * (0.5 + Math.random() / 2));
    pause = Math.min(2 * pause, LONGEST_MS);
  };
  const open = () => {
    heardAt = Date.now();
    source = new EventSource(last ? `/stream?last_event_id=${encodeURIComponent(last)}` : "/stream");
    source.onopen = () => { openedAt = heardAt = Date.now(); tell("open", null); };
    source.onerror = () => lose(source?.readyState === EventSource.CLOSED);
    source.addEventListener("beat", () => { heardAt = Date.now(); });
    for (const name of EVENTS) {
      source.addEventListener(name, (event) => {
        heardAt = Date.now();
        last = event.lastEventId || last;
        tell(name, JSON.parse(event.data));
      });
    }
  };
  // A network that was left, a computer that slept: nothing says that such a connection is dead.
  const watch = setInterval(() => {
    if (source !== null && Date.now() - heardAt > SILENT_MS) lose(false);
  }, LOOK_MS);
  open();
  return () => {
    clearInterval(watch);
    clearTimeout(timer);
    source?.close();
    source = null;
  };
}
