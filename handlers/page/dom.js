// Makes parts of the page. Every name on it came from outside: text goes in as text, never as HTML.

/**
 * The element of the page with an id; it is there, and of the kind that is said.
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id
 * @param {new () => T} [kind] such as HTMLInputElement
 * @returns {T}
 */
export function byId(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof (kind ?? HTMLElement))) throw new Error(`the page has no such #${id}`);
  return /** @type {T} */ (found);
}

/**
 * A new element; an attribute `onclick` is what a click on it does.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string | number | ((event: MouseEvent) => void)>} attributes
 * @param {...(Node | string | null)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener("click", /** @type {EventListener} */ (value));
    else node.setAttribute(name, String(value));
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const NO_PICTURE = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=";
/** Characters of a reason within a line. */
const MOST_SAID = 160;

/** @param {number | null} bytes */
export const ofSize = (bytes) => {
  if (bytes === null) return "";
  return bytes < 1e5 ? `${bytes} bytes` : `${(bytes / 1e6).toFixed(1)} MB`;
};
// The page is in English: its numbers and times are written one way, whatever the browser's language.
/** @param {number} number */
export const inWords = (number) => number.toLocaleString("en");
/** @param {number} number */
const two = (number) => String(number).padStart(2, "0");
/** The time of day where the browser is: "14:05". @param {Date} time */
export const clockOf = (time) => `${two(time.getHours())}:${two(time.getMinutes())}`;
/** Day and time where the browser is: "2026-03-01 14:05". @param {string | Date} time */
export function when(time) {
  const at = new Date(time);
  if (Number.isNaN(at.getTime())) return String(time);
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${clockOf(at)}`;
}
/** Day and time on two lines, for a narrow column. @param {string} time */
export const onTwoLines = (time) => when(time).split(" ").map((part) => element("div", {}, part));
/** Words of somebody else within a line: as much of them as a person reads there. @param {string} words */
export const briefly = (words) => {
  const plain = words.trim().replace(/\s+/g, " ").replace(/\.$/, "");
  return plain.length > MOST_SAID ? `${plain.slice(0, MOST_SAID)}…` : plain;
};
/**
 * A film's picture; where there is none, nothing.
 * @param {string} fileId
 * @param {Record<string, string>} attributes
 */
export function picture(fileId, attributes = {}) {
  const image = element("img", { src: `/thumbnail/${fileId}`, alt: "", ...attributes });
  image.addEventListener("error", () => { image.src = NO_PICTURE; }, { once: true });
  return image;
}
/** A name within a sentence: whichever way it is written, the words around it stay in place. @param {string} name */
export const apart = (name) => `\u2068${name}\u2069`;
/** @param {string | null} key */
export const shortName = (key) => (key ?? "").replace(/\/+$/, "").split("/").pop() ?? "";
