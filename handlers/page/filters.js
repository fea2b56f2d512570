// What the lists are narrowed to and how they are sorted; the address keeps it.

import { call } from "./api.js";
import { byId, element } from "./dom.js";

/** Controls by the name that the address has for what they say. */
const CONTROLS = ["query", "folder", "state", "batch", "model", "asked", "order", "file-state", "file-order"];

/** @param {string} id */
const control = (id) => /** @type {HTMLInputElement | HTMLSelectElement} */ (byId(id));
/** What a control says. A folder's name may begin with a space. @param {string} id */
const said = (id) => (id === "folder" ? control(id).value.trimEnd() : control(id).value.trim());

/** What GET /analyses is asked for. */
export const ofRuns = () => ({
  q: said("query"), prefix: said("folder"), state: said("state"), model: said("model"),
  asked_by: said("asked"), batch: said("batch"), order: said("order") || "newest",
});

/** What GET /files is asked for. */
export const ofFiles = () => ({
  q: said("query"), prefix: said("folder"), state: said("file-state"), order: said("file-order") || "newest",
});

/** Whether anything is left out of the lists. */
export const isNarrowed = () => CONTROLS.some((id) => !id.endsWith("order") && said(id) !== "");

/** @param {Record<string, string>} asked */
export function queryOf(asked) {
  return new URLSearchParams(Object.entries(asked).filter(([, value]) => value !== "")).toString();
}

function keep() {
  const kept = new URLSearchParams();
  for (const id of CONTROLS) if (said(id) !== "" && said(id) !== "newest") kept.set(id, said(id));
  const query = kept.toString();
  history.replaceState(null, "", query ? `?${query}` : location.pathname);
}

async function offerModels() {
  const names = new Set((await call("GET", "/models")).items.map((/** @type {{name: string}} */ model) => model.name));
  const chosen = said("model");
  if (chosen !== "") names.add(chosen); // it may be removed; its runs are there
  byId("model").replaceChildren(element("option", { value: "" }, "all"),
    ...[...names].map((name) => element("option", { value: name }, name)));
  control("model").value = chosen;
}

/** @type {() => void} */
let changed = () => {};

/**
 * Narrow the lists to these values of controls alone, as a person would by choosing them.
 * @param {Record<string, string>} values by the names of the controls
 */
export function narrowTo(values) {
  for (const id of CONTROLS) if (!id.endsWith("order")) control(id).value = values[id] ?? "";
  changed();
}

/**
 * Begin: take from the address what the lists are narrowed to.
 * @param {() => void} act called when that changes
 */
export function begin(act) {
  const given = new URLSearchParams(location.search);
  const model = given.get("model");
  for (const id of ["model", "batch"]) {
    const value = given.get(id); // it is among those to choose from once these are known
    if (value) byId(id).append(element("option", { value }, value));
  }
  for (const id of CONTROLS) control(id).value = given.get(id) ?? control(id).value;
  let timer = 0;
  changed = () => { keep(); act(); };
  for (const id of CONTROLS) {
    const typed = control(id) instanceof HTMLInputElement;
    control(id).addEventListener(typed ? "input" : "change", () => {
      clearTimeout(timer);
      timer = setTimeout(changed, typed ? 250 : 0);
    });
  }
  byId("search").addEventListener("submit", (event) => { event.preventDefault(); changed(); });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("clear").addEventListener("click", () => narrowTo({}));
  if (model) {
    for (const option of byId("model").querySelectorAll("option")) if (option.value === model) option.remove();
    byId("model").append(element("option", { value: model }, model));
    control("model").value = model;
  }
  offerModels().catch(() => {}); // the others are of use without
}
