// Says one line to the person at the page: what has happened, or why something has not.
// A live region: a screen reader reads it out. The newest line replaces the one before it.

import { element } from "./dom.js";

const SHOWN_MS = 8000;
let timer = 0;

function region() {
  const known = document.getElementById("said");
  if (known) return known;
  const made = element("div", { id: "said", role: "status", "aria-live": "polite" });
  document.body.append(made);
  return made;
}

/**
 * Say what has happened. It goes after some seconds.
 * @param {string} text
 */
export function say(text) {
  clearTimeout(timer);
  region().replaceChildren(element("p", {}, text));
  timer = setTimeout(() => region().replaceChildren(), SHOWN_MS);
}

/**
 * Say why something was not done. It stays until it is closed, or something else is said.
 * @param {unknown} error an Error, or its words
 */
export function complain(error) {
  clearTimeout(timer);
  const words = error instanceof Error ? error.message : String(error);
  const close = element("button", { type: "button", onclick: () => region().replaceChildren() }, "close");
  region().replaceChildren(element("p", { class: "why" }, words), close);
}

/**
 * Do what a click asks for, and complain where that fails: for use as an event's listener.
 * @param {() => Promise<void>} work
 * @returns {() => Promise<void>}
 */
export const told = (work) => async () => {
  try {
    await work();
  } catch (error) {
    complain(error);
  }
};

/**
 * A part of the page that a click needs, and that index.html has loaded.
 * @template T
 * @param {Promise<T>} loading
 * @returns {Promise<T>}
 */
export async function part(loading) {
  try {
    return await loading;
  } catch (error) {
    throw new Error(`This part of the page can't be had (${/** @type {Error} */ (error).message}): load the page anew.`);
  }
}

region(); // there before the first words: a live region that comes with its words is read by few
