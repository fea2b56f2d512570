// A list of the server's that is shown as it is now: read page by page, changed by what is told.

import { call } from "./api.js";
import { queryOf } from "./filters.js";
import { VirtualList } from "./virtual_list.js";

/** Entries that are asked for at once: at first, and at most. */
const PAGE = 200, MOST = 1000;
/** Between two readings of the newest entries, milliseconds. */
const PAUSE_MS = 1500;

/** @typedef {Record<string, any> & {key: string, created_at: string}} Entry a run or a file */

/**
 * @param {Entry} a
 * @param {Entry} b
 */
const newestFirst = (a, b) => (a.created_at < b.created_at ? 1 : a.created_at > b.created_at ? -1 : 0);
/** @type {Record<string, (a: Entry, b: Entry) => number>} as the server sorts */
const ORDERS = {
  newest: newestFirst,
  name: (a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : -newestFirst(a, b)),
  quality: (a, b) => ((a.quality ?? 101) - (b.quality ?? 101)) || newestFirst(a, b),
};

export class LiveList {
  /** @type {Entry[]} */
  #items = [];
  /** @type {string | null} */
  #next = null;
  #reading = false;
  /** Pages behind the first that could not be read, one after the other. */
  #failures = 0;
  #readAt = -PAUSE_MS;
  #timer = 0;
  /** Counts the questions that were asked anew: answers to older ones are of no use. */
  #turn = 0;
  #begun = false;
  /** @type {Map<string, Entry | null> | null} while all is read anew, what is told */
  #anew = null;

  /**
   * @param {object} about
   * @param {string} about.path such as "/analyses"
   * @param {string} about.id the field that names an entry
   * @param {() => Record<string, string>} about.asked what is asked for, as filters.js has it
   * @param {(entry: Entry, field: string) => string} about.field an entry's value of a filter
   * @param {HTMLElement} about.scroller
   * @param {HTMLElement} about.body
   * @param {import("./virtual_list.js").Look<any>} about.look
   * @param {(count: number, all: boolean) => void} about.counted told how many entries there are
   * @param {(error: Error) => void} about.failed
   */
  constructor(about) {
    this.about = about;
    this.view = new VirtualList(about.scroller, about.body, (item) => item[about.id], about.look, () => this.#more());
  }

  /** Read the list anew, from its beginning. */
  restart() {
    this.#turn += 1;
    this.#items = [];
    this.#next = null;
    this.#begun = false;
    this.view.clear();
    this.#read(null);
  }

  /** Read the first entries anew, once in a while, and leave those behind them. */
  soon() {
    if (this.#timer !== 0 || this.#anew !== null) return;
    const pause = Math.max(0, this.#readAt + PAUSE_MS - performance.now());
    this.#timer = setTimeout(() => { this.#timer = 0; this.#read(null); }, pause);
  }

  /** Read all that was read before anew: something was missed. What is seen stays in its place. */
  async again() {
    if (this.#items.length <= PAGE) { this.soon(); return; }
    const turn = ++this.#turn;
    /** @type {Map<string, Entry | null>} what is told meanwhile, which is newer; null: it is gone */
    const told = new Map();
    this.#anew = told;
    const { failed } = this.about;
    try {
      /** @type {Entry[]} */
      const items = [];
      /** @type {string | null} */
      let next = null;
      do {
        const page = await this.#page(next, MOST);
        if (turn !== this.#turn) return;
        items.push(...page.items);
        next = page.next;
        if (next !== null) await new Promise((resolve) => { setTimeout(resolve, PAUSE_MS); });
      } while (next !== null && items.length < this.#items.length && turn === this.#turn);
      if (turn !== this.#turn) return;
      this.#note(items);
      this.#items = items;
      this.#next = next;
      const gone = [...told].filter(([, item]) => item === null).map(([name]) => name);
      this.take({ items: [...told.values()].filter((item) => item !== null), gone });
    } catch (error) {
      if (turn === this.#turn) failed(error);
    } finally {
      if (this.#anew === told) this.#anew = null;
    }
  }

  /**
   * @param {string | null} cursor
   * @param {number} limit
   * @returns {Promise<{items: Entry[], next: string | null}>}
   */
  #page(cursor, limit) {
    const query = queryOf({ ...this.about.asked(), limit: String(limit), cursor: cursor ?? "" });
    return call("GET", `${this.about.path}?${query}`);
  }

  /** Have those rendered anew that are not as they were. @param {Entry[]} items */
  #note(items) {
    const { id } = this.about;
    const before = new Map(this.#items.map((item) => [item[id], item]));
    for (const item of items) {
      const was = before.get(item[id]);
      if (was && JSON.stringify(was) !== JSON.stringify(item)) this.view.changed(item[id]);
    }
  }

  #more() {
    if (this.#next !== null) this.#read(this.#next);
  }

  /** @param {string | null} cursor null: from the beginning */
  async #read(cursor) {
    if (this.#reading && cursor !== null) return;
    this.#reading = true;
    const turn = this.#turn;
    const { id, failed } = this.about;
    try {
      if (cursor === null) this.#readAt = performance.now();
      // Whoever has scrolled far is on the way to the end.
      const limit = cursor === null ? PAGE : Math.min(MOST, Math.max(PAGE, this.#items.length));
      const page = await this.#page(cursor, limit);
      // Before it is shown: who waits at the end of the list asks for more by that.
      this.#reading = false;
      if (turn !== this.#turn) return;
      if (cursor !== null) {
        this.#failures = 0;
        const known = new Set(this.#items.map((item) => item[id]));
        this.#items = [...this.#items, ...page.items.filter((/** @type {Entry} */ item) => !known.has(item[id]))];
        this.#next = page.next;
      } else {
        this.#head(page);
      }
      this.#begun = true;
      this.#show();
      // A page may have nothing although there is more: the server has looked at many.
      if (page.items.length === 0 && page.next !== null) setTimeout(() => this.#more());
    } catch (error) {
      this.#reading = false;
      if (turn !== this.#turn) return;
      failed(error);
      // Whoever waits at the end scrolls no further.
      if (cursor !== null) setTimeout(() => this.view.draw(), PAUSE_MS * 2 ** Math.min(5, ++this.#failures));
    }
  }

  /**
   * Take the first page as it is now, and leave what was read behind it.
   * @param {{items: Entry[], next: string | null}} page
   */
  #head(page) {
    const { id } = this.about;
    this.#note(page.items);
    const last = page.items.at(-1);
    const at = last ? this.#items.findIndex((item) => item[id] === last[id]) : -1;
    if (page.next === null || at < 0) {
      this.#items = page.items;
      this.#next = page.next;
    } else {
      this.#items = [...page.items, ...this.#items.slice(at + 1)];
    }
  }

  #show() {
    this.view.show(this.#items);
    this.about.counted(this.#items.length, this.#next === null);
  }

  /** @param {Entry} item */
  #fits(item) {
    const { q, order, batch, ...filters } = this.about.asked();
    return Object.entries(filters).every(([field, value]) => value === ""
      || (field === "prefix" ? item.key.startsWith(value) : this.about.field(item, field) === value));
  }

  /**
   * Take what the server tells of: entries that changed, and the ids of those that are gone.
   * @param {{items: Entry[], gone: string[]}} told
   */
  take({ items, gone }) {
    if (!this.#begun) return;
    const { id, asked } = this.about;
    const { q, batch, order } = asked();
    for (const name of gone) this.#anew?.set(name, null);
    for (const item of items) this.#anew?.set(item[id], item);
    const compare = ORDERS[order];
    const told = new Set([...gone, ...items.map((item) => item[id])]);
    const known = new Set(this.#items.map((item) => item[id]));
    const left = this.#items.filter((item) => !told.has(item[id]));
    for (const item of items) {
      if (!this.#fits(item)) continue;
      // What a search finds and which films a batch has, the server knows.
      if ((q || batch) && !known.has(item[id])) { this.soon(); continue; }
      let at = left.findIndex((each) => compare(item, each) < 0);
      if (at < 0 && this.#next !== null && !known.has(item[id])) continue; // it is read with its page
      if (at < 0) at = left.length;
      left.splice(at, 0, item);
    }
    for (const name of told) this.view.changed(name);
    this.#items = left;
    this.#show();
  }

  /** Show the entries another way. @param {import("./virtual_list.js").Look<any>} look @param {HTMLElement} body */
  showAs(look, body) {
    this.view.body = body;
    this.view.clear(look);
    this.#show();
  }
}
