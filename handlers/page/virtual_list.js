// A list of which only what can be seen is on the page: ten thousand rows cost as much as thirty.

import { element } from "./dom.js";

/** Rows beyond what can be seen, on each side. */
const BEYOND = 6;

/**
 * @template Item
 * @typedef {object} Look
 * @property {"table" | "cards"} kind
 * @property {number} height of a row in pixels; all have the same
 * @property {(item: Item) => HTMLElement} render
 */

/** @template Item */
export class VirtualList {
  /** @type {Item[]} */
  items = [];
  /** @type {Map<string, HTMLElement>} */
  #nodes = new Map();
  #first = -1;
  #last = -1;
  #due = false;

  /**
   * @param {HTMLElement} scroller what scrolls
   * @param {HTMLElement} body what has the rows: a tbody, or a div of cards
   * @param {(item: Item) => string} nameOf
   * @param {Look<Item>} look
   * @param {() => void} atEnd called when the end of the items comes near
   */
  constructor(scroller, body, nameOf, look, atEnd) {
    this.scroller = scroller;
    this.body = body;
    this.nameOf = nameOf;
    this.look = look;
    this.atEnd = atEnd;
    scroller.addEventListener("scroll", () => this.#soon(), { passive: true });
    new ResizeObserver(() => this.#soon()).observe(scroller);
  }

  /**
   * Show these items, where they are the same as before with the nodes that they have.
   * @param {Item[]} items
   */
  show(items) {
    this.items = items;
    this.#first = -1;
    this.draw();
  }

  /** Have an item rendered anew: it has changed. @param {string} name */
  changed(name) {
    this.#nodes.delete(name);
    this.#first = -1;
  }

  /** Begin anew with other rows, from the top. @param {Look<Item>} [look] */
  clear(look = this.look) {
    this.look = look;
    this.#nodes.clear();
    this.#first = -1;
    this.scroller.scrollTop = 0;
  }

  #soon() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => { this.#due = false; this.draw(); });
  }

  #columns() {
    if (this.look.kind === "table") return 1;
    return Math.max(1, getComputedStyle(this.body).gridTemplateColumns.split(" ").length);
  }

  /** Put onto the page what can be seen now. */
  draw() {
    const { height } = this.look;
    const columns = this.#columns();
    const top = Math.max(0, Math.floor(this.scroller.scrollTop / height) - BEYOND);
    const rows = Math.ceil(this.scroller.clientHeight / height) + 2 * BEYOND;
    const first = Math.min(top * columns, Math.max(0, this.items.length - columns));
    const last = Math.min(this.items.length, (top + rows) * columns);
    if (last >= this.items.length - columns * BEYOND) this.atEnd();
    if (first === this.#first && last === this.#last) return;
    this.#first = first;
    this.#last = last;
    const focused = this.#focused();
    const shown = new Map();
    const nodes = this.items.slice(first, last).map((item) => {
      const name = this.nameOf(item);
      const node = this.#nodes.get(name) ?? this.#rendered(item);
      node.dataset.name = name;
      shown.set(name, node);
      return node;
    });
    this.#nodes = shown;
    const below = Math.ceil(Math.max(0, this.items.length - last) / columns);
    this.#place([
      ...this.#space(Math.ceil(first / columns) * height, "before"), ...nodes, ...this.#space(below * height, "after"),
    ]);
    this.#focus(focused);
  }

  /** An item's row; of one that can't be shown, that much. @param {Item} item @returns {HTMLElement} */
  #rendered(item) {
    try {
      return this.look.render(item);
    } catch (error) {
      reportError(error);
      const words = `This page can't show ${this.nameOf(item)}.`;
      return this.look.kind === "table" ? element("tr", {}, element("td", { class: "why" }, words))
        : element("article", { class: "card why" }, words);
    }
  }

  /**
   * Put nodes in place without taking those away that are there: a video goes on playing.
   * @param {HTMLElement[]} nodes
   */
  #place(nodes) {
    const wanted = new Set(nodes);
    for (const child of [...this.body.children]) {
      if (!wanted.has(/** @type {HTMLElement} */ (child))) child.remove();
    }
    nodes.forEach((node, at) => {
      if (this.body.children[at] !== node) this.body.insertBefore(node, this.body.children[at] ?? null);
    });
  }

  /**
   * @param {number} pixels
   * @param {string} where
   * @returns {HTMLElement[]}
   */
  #space(pixels, where) {
    if (pixels <= 0) return [];
    const inner = element(this.look.kind === "table" ? "td" : "div", { class: `space ${where}`, "aria-hidden": "true" });
    inner.style.height = `${pixels}px`;
    if (this.look.kind === "cards") return [inner];
    inner.setAttribute("colspan", String(this.body.closest("table")?.querySelectorAll("th").length ?? 1));
    return [element("tr", { "aria-hidden": "true" }, inner)];
  }

  /** Which of the controls of which row has the focus. */
  #focused() {
    const node = document.activeElement?.closest("[data-name]");
    if (!(node instanceof HTMLElement) || !this.body.contains(node)) return null;
    return { name: node.dataset.name, at: controls(node).indexOf(/** @type {HTMLElement} */ (document.activeElement)) };
  }

  /** @param {{name: string | undefined, at: number} | null} was */
  #focus(was) {
    if (was === null) return;
    const node = [...this.body.children].find((each) => /** @type {HTMLElement} */ (each).dataset.name === was.name);
    if (!(node instanceof HTMLElement) || node.contains(document.activeElement)) return;
    (controls(node)[was.at] ?? controls(node)[0])?.focus({ preventScroll: true });
  }
}

/** @param {HTMLElement} node @returns {HTMLElement[]} */
const controls = (node) => [...node.querySelectorAll("a, button, video, summary")].map((each) => /** @type {HTMLElement} */ (each));
