// A rectangle drawn on a film's thumbnail, by mouse, finger or keys; kept in the film's pixels.

import { element } from "./dom.js";

/** @typedef {import("./form_fields.js").Field} Field */
/** @typedef {{x1: number, x2: number, y1: number, y2: number}} Rectangle */

const within = (/** @type {number} */ value, /** @type {number} */ least, /** @type {number} */ most) =>
  Math.min(Math.max(Math.round(value), least), most);

/**
 * Return the rectangle after a key, None of whose sides leaves the film; Shift moves the far corner.
 * @param {Rectangle} at
 * @param {number} right pixels
 * @param {number} down pixels
 * @param {boolean} isSize whether the far corner moves, and not the whole
 * @param {{width: number, height: number}} film
 * @returns {Rectangle}
 */
export function moved(at, right, down, isSize, film) {
  if (isSize) {
    return { ...at, x2: within(at.x2 + right, at.x1 + 1, film.width), y2: within(at.y2 + down, at.y1 + 1, film.height) };
  }
  const wide = at.x2 - at.x1;
  const high = at.y2 - at.y1;
  const x1 = within(at.x1 + right, 0, film.width - wide);
  const y1 = within(at.y1 + down, 0, film.height - high);
  return { x1, x2: x1 + wide, y1, y2: y1 + high };
}

/**
 * Return a picture of the film to draw a crop on; the four fields follow it, and it follows them.
 * @param {{file_id: string, width: number, height: number}} film its size in pixels
 * @param {Record<"x1" | "x2" | "y1" | "y2", Field>} fields
 * @param {HTMLElement} inside what has the four fields
 * @returns {HTMLElement}
 */
export function cropOn(film, fields, inside) {
  const whole = { x1: 0, x2: film.width, y1: 0, y2: film.height };
  const picture = element("img", { src: `/thumbnail/${film.file_id}`, alt: "a frame of the film", draggable: "false" });
  const box = element("div", { class: "crop", tabindex: "0", role: "application", "aria-label": "crop" });
  const said = element("p", { class: "small", role: "status" });
  const stage = element("div", { class: "stage" }, picture, box);
  const hint = "Draw a rectangle; drag it to move it. Keys: arrows move it by 10 pixels, with Shift they "
    + "move its lower right corner; with Alt, by 1 pixel.";

  /** @returns {Rectangle | null} null while the fields are no rectangle of the film */
  const read = () => {
    const at = /** @type {Rectangle} */ (Object.fromEntries(
      Object.entries(fields).map(([name, field]) => [name, field.read()])));
    const isOne = Object.values(at).every((value) => Number.isInteger(value))
      && at.x1 >= 0 && at.y1 >= 0 && at.x1 < at.x2 && at.y1 < at.y2 && at.x2 <= film.width && at.y2 <= film.height;
    return isOne ? at : null;
  };
  const draw = () => {
    const at = read();
    box.hidden = at === null;
    said.textContent = at === null ? `no rectangle of the film's ${film.width}×${film.height} pixels`
      : `${at.x2 - at.x1}×${at.y2 - at.y1} of ${film.width}×${film.height} pixels`;
    if (at === null) return;
    box.style.left = `${(100 * at.x1) / film.width}%`;
    box.style.top = `${(100 * at.y1) / film.height}%`;
    box.style.width = `${(100 * (at.x2 - at.x1)) / film.width}%`;
    box.style.height = `${(100 * (at.y2 - at.y1)) / film.height}%`;
  };
  const write = (/** @type {Rectangle} */ at) => {
    for (const name of /** @type {const} */ (["x1", "x2", "y1", "y2"])) fields[name].write(at[name]);
    draw();
    stage.dispatchEvent(new Event("change", { bubbles: true }));
  };

  const pixelOf = (/** @type {PointerEvent} */ event) => {
    const shown = picture.getBoundingClientRect();
    return {
      x: within(((event.clientX - shown.left) / shown.width) * film.width, 0, film.width),
      y: within(((event.clientY - shown.top) / shown.height) * film.height, 0, film.height),
    };
  };
  /** @type {{x: number, y: number, at: Rectangle | null} | null} where a drag began; `at` moves */
  let from = null;
  stage.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
    if (event.button !== 0) return;
    const old = read();
    const isWhole = old !== null && old.x2 - old.x1 === film.width && old.y2 - old.y1 === film.height;
    from = { ...pixelOf(event), at: event.target === box && !isWhole ? old : null };
    stage.setPointerCapture(event.pointerId);
    event.preventDefault();
    box.focus();
  });
  stage.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    if (from === null) return;
    const to = pixelOf(event);
    if (from.at !== null) {
      write(moved(from.at, to.x - from.x, to.y - from.y, false, film));
    } else if (to.x !== from.x && to.y !== from.y) {
      write({
        x1: Math.min(from.x, to.x), x2: Math.max(from.x, to.x), y1: Math.min(from.y, to.y), y2: Math.max(from.y, to.y),
      });
    }
  });
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => { from = null; });

  /** @type {Record<string, [number, number]>} */
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  box.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const way = ways[event.key];
    const at = read();
    if (!way || at === null) return;
    event.preventDefault(); // Alt+arrow would leave the page, an arrow would scroll it
    const step = event.altKey ? 1 : 10;
    write(moved(at, way[0] * step, way[1] * step, event.shiftKey, film));
  });
  inside.addEventListener("input", draw);
  // Written from outside: a form that is filled in draws what it was filled in with.
  for (const field of Object.values(fields)) {
    const { write: plain } = field;
    field.write = (value) => { plain(value); draw(); };
  }
  if (Object.values(fields).every((field) => field.read() === undefined)) write(whole);
  draw();
  return element("div", { class: "cropping" }, element("p", { class: "small" }, hint), stage, said);
}
