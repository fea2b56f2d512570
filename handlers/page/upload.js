// What is dropped or chosen: looked at before it goes up, so that a person sees what comes of it.

import { call } from "./api.js";
import { choiceNow } from "./chosen.js";
import { byId, element, ofSize } from "./dom.js";
import { complain } from "./say.js";
import { filesOfDrop, filesOfInput, RULE } from "./tree.js";
import { patiently } from "./upload_parts.js";
import { enqueue, work } from "./upload_queue.js";

/** @typedef {import("./tree.js").Found} Found */
/** @typedef {import("./tree.js").Drop} Drop */
/** @typedef {import("./tree.js").Unread} Unread */
/** @typedef {{path: string, key: string | null, state: "new" | "exists" | "passed over" | "refused", why: string | null,
 *   rule: string | null, runs: string | null}} Checked */

/** POST /uploads/check takes no more; the rules are told with all films. */
const CHECKED_AT_ONCE = 500;
/** ... or each film would cost a request of its own. */
const RULES_AT_ONCE = 400;
const SHOWN = 200;
const MOST_OF_RULE = 65536;

const folder = byId("to", HTMLInputElement);
const preview = byId("preview");
const words = byId("preview-words");
let looking = new AbortController();

/**
 * Look at files, and say where that fails.
 * @param {Promise<Drop> | Drop} files
 */
async function lookAt(files) {
  try {
    const { found, unread } = await files;
    if (found.length + unread.length > 0) await look(found, unread);
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") return; // it is not wanted any more
    close();
    complain(error);
  }
}

/** Take the preview away, words and all. */
function close() {
  looking.abort();
  preview.hidden = true;
  words.textContent = "";
}

/**
 * The text of a posedrop.json in the encodings that posedrop reads: PowerShell's `>` and Notepad may write UTF-16.
 * @param {ArrayBuffer} data
 */
function textOf(data) {
  const [one, two] = new Uint8Array(data);
  // JSON begins with a character of ASCII: without a byte order mark, its other byte tells.
  if ((one === 0xff && two === 0xfe) || two === 0) return new TextDecoder("utf-16le").decode(data);
  if ((one === 0xfe && two === 0xff) || one === 0) return new TextDecoder("utf-16be").decode(data);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(data);
  } catch {
    return new TextDecoder("windows-1252").decode(data);
  }
}

/**
 * The folder whose films would go up without their rule, as that could not be read; null: none.
 * @param {Unread} unread
 */
const folderOf = ({ path, isFolder }) => (isFolder ? `${path}/` : RULE.test(path) ? path.replace(/[^/]*$/, "") : null);

/** @param {Unread} unread @returns {Checked} */
const refusalOf = ({ path, why }) => ({ path, key: null, state: "refused", why: `it can't be read: ${why}`, rule: null, runs: null });

/**
 * What rules say, by path.
 * @param {Found[]} rules
 * @param {Unread[]} unread gets those that can't be read
 */
async function contentsOf(rules, unread) {
  /** @type {Map<string, string>} */
  const said = new Map();
  for (const { file, path } of rules) {
    if (file.size > MOST_OF_RULE) continue; // the server says so
    try {
      said.set(path, textOf(await file.arrayBuffer()));
    } catch (error) {
      unread.push({ path, isFolder: false, why: /** @type {Error} */ (error).message });
    }
  }
  return said;
}

/**
 * @param {Found[]} all
 * @param {Unread[]} unread
 */
async function look(all, unread) {
  looking.abort(); // at what was dropped before
  looking = new AbortController();
  const { signal } = looking;
  /** @type {{analysis?: string, args?: Record<string, any>}} */
  const choice = choiceNow() ?? {};
  const said = await contentsOf(all.filter(({ path }) => RULE.test(path)), unread);
  signal.throwIfAborted();
  const found = [];
  /** @type {Map<string, Checked>} */
  const answers = new Map(unread.map((each) => [each.path, refusalOf(each)]));
  for (const each of all) {
    if (answers.has(each.path)) continue;
    // Where an analysis was chosen, no rule counts.
    const lacks = choice.analysis ? undefined : unread.find((one) => each.path.startsWith(folderOf(one) ?? "\0"));
    if (lacks) answers.set(each.path, { ...refusalOf({ ...lacks, path: each.path }), why: `${lacks.path} can't be read, and its rule may be there: mend that first` });
    else found.push(each);
  }
  const to = folder.value.trim();
  const rules = found.filter(({ path }) => RULE.test(path));
  const films = found.filter(({ path }) => !RULE.test(path));
  if (rules.length > RULES_AT_ONCE) throw new Error(`There are ${rules.length} posedrop.json: drop at most ${RULES_AT_ONCE} at a time.`);
  preview.hidden = false;
  words.textContent = `Looking at ${found.length} files…`;
  byId("preview-list").replaceChildren();
  byId("start", HTMLButtonElement).hidden = byId("compare", HTMLButtonElement).hidden = true;
  const toAsk = (/** @type {Found} */ { file, path }) => ({
    path,
    size: file.size,
    ...(said.has(path) ? { content: said.get(path) } : {}),
  });
  const asked = rules.map(toAsk);
  const away = (/** @type {string} */ why) => { words.textContent = why ? `Waits: ${why}` : `Looking at ${found.length} files…`; };
  const step = CHECKED_AT_ONCE - rules.length;
  for (let start = 0; start < Math.max(films.length, Math.min(1, rules.length)); start += step) {
    const some = films.slice(start, start + step).map(toAsk);
    const request = { to, files: [...asked, ...some], ...(choice.analysis ? { analysis: choice.analysis } : {}) };
    const { items } = await patiently({ sent: () => {}, away, signal }, () => call("POST", "/uploads/check", request));
    for (const item of items) answers.set(item.path, item);
  }
  offer([...rules, ...films], answers, to, choice);
}

/**
 * Show what would become of the files, and let them be sent.
 * @param {Found[]} found rules first
 * @param {Map<string, Checked>} answers by path
 * @param {string} to
 * @param {Record<string, unknown>} choice
 */
function offer(found, answers, to, choice) {
  const checked = [...answers.values()];
  const of = (/** @type {string} */ state) => checked.filter((each) => each.state === state);
  const fresh = of("new");
  const going = fresh.filter((each) => !RULE.test(each.path));
  const bytes = found.filter(({ path }) => answers.get(path)?.state === "new").reduce((sum, { file }) => sum + file.size, 0);
  const exist = of("exists").length;
  const running = going.filter((each) => each.runs !== null).length;
  words.textContent = `${fresh.length} go up (${ofSize(bytes)}), an analysis runs on ${running}; `
    + `${exist} of the same name and size are there already, ${of("refused").length} are refused, `
    + `${of("passed over").length} are passed over.`;
  // What is refused comes first: that is what a person can do something about.
  const rank = ["refused", "new", "exists", "passed over"];
  const shown = [...checked].sort((a, b) => rank.indexOf(a.state) - rank.indexOf(b.state)).slice(0, SHOWN);
  byId("preview-list").replaceChildren(
    ...shown.map((each) => element("li", {},
      element("span", { class: `state ${each.state === "refused" ? "refused" : ""}` }, each.state),
      ` ${each.key ?? each.path} `,
      element("span", { class: each.state === "refused" ? "why" : "small" }, describe(each)))),
    checked.length > SHOWN ? element("li", { class: "small" }, `and ${checked.length - SHOWN} more`) : "");
  const take = (/** @type {string} */ state, /** @type {RegExp | undefined} */ but = undefined) => {
    for (const { file, path } of found) {
      if (answers.get(path)?.state === state && !but?.test(path)) {
        enqueue(file, path, { path, size: file.size, ...(to ? { to } : {}), ...(RULE.test(path) ? {} : choice) });
      }
    }
  };
  const start = byId("start", HTMLButtonElement);
  start.hidden = fresh.length === 0;
  start.onclick = () => {
    take("new");
    close();
    work();
  };
  const compare = byId("compare", HTMLButtonElement);
  compare.hidden = !of("exists").some((each) => !RULE.test(each.path));
  compare.onclick = () => {
    compare.hidden = true;
    take("exists", RULE); // rules were compared by what they say
    if (start.hidden) close();
    work();
  };
  if (!start.hidden) start.focus();
}

/** @param {Checked} each */
function describe(each) {
  if (each.why) return each.why;
  if (each.state !== "new" || RULE.test(each.path)) return "";
  const by = each.rule ? ` (${each.rule})` : "";
  return each.runs ? `${each.runs} runs${by}` : `nothing runs${by}`;
}

/** Offer the folders that there are below the one that is typed. */
async function folders() {
  const under = folder.value.slice(0, folder.value.lastIndexOf("/") + 1);
  const { items } = await call("GET", `/uploads/folders?under=${encodeURIComponent(under)}`);
  byId("folders").replaceChildren(...items.map((/** @type {string} */ name) => element("option", { value: name })));
}

/** Begin: take what is dropped and chosen. */
function start() {
  folder.onfocus = folder.oninput = () => { folders().catch(() => {}); };
  byId("forget", HTMLButtonElement).onclick = close;

  const drop = byId("drop");
  drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer) lookAt(filesOfDrop(event.dataTransfer));
  };
  // Beside it a drop is no drop: the browser would leave the page for the film.
  for (const name of /** @type {const} */ (["dragover", "drop"])) {
    addEventListener(name, (event) => {
      if (event.defaultPrevented || !event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = "none";
    });
  }
  for (const id of ["choose", "choose-folder"]) {
    const input = byId(id, HTMLInputElement);
    input.onchange = () => {
      const found = filesOfInput(input);
      input.value = ""; // the same may be chosen again
      lookAt(found);
    };
    if (input.files?.length) input.onchange(new Event("change")); // chosen before this script came
  }
}

start();
