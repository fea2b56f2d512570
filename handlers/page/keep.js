// "Keep for this folder": what was chosen for one film becomes the folder's posedrop.json.

import { call } from "./api.js";
import { openDialog } from "./dialog.js";
import { element } from "./dom.js";
import { say } from "./say.js";

/**
 * The folders above a film, the nearest first; the last is the whole bucket.
 * @param {string} key
 */
export function foldersOf(key) {
  const parts = key.split("/").slice(0, -1);
  return [...parts.map((_, i) => `${parts.slice(0, parts.length - i).join("/")}/`), ""];
}

/** @param {string} folder */
const nameOf = (folder) => folder || "the whole bucket";

/**
 * Say which films it starts, and what it takes the place of; write it once that is confirmed.
 * @param {string} key of the film
 * @param {{analysis: string, args: Record<string, any>}} choice
 * @returns {Promise<boolean>} whether it was written; rejects where the server refuses the arguments
 */
export function keepForFolder(key, choice) {
  const select = element("select", {}, ...foldersOf(key).map((folder) =>
    element("option", { value: folder }, nameOf(folder))));
  const existing = element("input", { type: "checkbox" });
  existing.checked = true;
  const what = element("div", { role: "status" });
  const wrong = element("p", { class: "why", role: "alert" });
  const go = element("button", { type: "submit", class: "go" }, "keep");
  const no = element("button", { type: "button" }, "cancel");
  const form = element("form", {},
    element("p", {}, element("label", {}, "folder ", select)),
    element("p", {}, element("label", {}, existing, " also for films that are there already and follow no rule")),
    what, wrong, element("p", { class: "buttons" }, no, go));
  const dialog = openDialog("Keep for a folder", form);
  select.focus();

  /** @type {any} as GET /rule answers; null while it is not known */
  let there = null;
  const look = async () => {
    const folder = select.value;
    there = null;
    go.disabled = true;
    what.replaceChildren(element("p", {}, "looking"));
    try {
      const found = await call("GET", `/rule?folder=${encodeURIComponent(folder)}`);
      if (folder !== select.value) return;
      there = found;
      const lines = [];
      if (found.etag === null) lines.push(`It is written to ${found.rule}.`);
      else if (found.problem) lines.push(`${found.rule} is wrong, and is replaced: ${found.problem}`);
      else if (found.analysis) lines.push(`It takes the place of ${found.analysis} in ${found.rule}.`);
      else lines.push(`It is added to ${found.rule}.`);
      lines.push("Films that come into it later follow it, unless a folder nearer to them has its own.");
      if (existing.checked) {
        const more = found.more ? " or more" : "";
        lines.push(found.waiting === 0 ? "It starts nothing now."
          : `It starts ${found.waiting}${more} that ${found.waiting === 1 ? "is" : "are"} there:`);
      }
      what.replaceChildren(...lines.map((line) => element("p", {}, line)));
      if (existing.checked && found.waiting > 0) {
        what.append(element("ul", { class: "small" }, ...found.films.map((/** @type {string} */ film) =>
          element("li", {}, film)), found.waiting > found.films.length ? element("li", {}, "…") : null));
      }
      go.disabled = false;
    } catch (error) {
      what.replaceChildren();
      wrong.textContent = /** @type {Error} */ (error).message;
    }
  };
  select.addEventListener("change", () => { wrong.textContent = ""; look(); });
  existing.addEventListener("change", look);
  look();

  return new Promise((resolve, reject) => {
    let written = false;
    /** @type {unknown} */
    let refused = null;
    no.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => (refused === null ? resolve(written) : reject(refused)));
    form.addEventListener("submit", async (/** @type {Event} */ event) => {
      event.preventDefault();
      if (there === null || go.disabled) return;
      go.disabled = true;
      wrong.textContent = "";
      /** @type {Record<string, string>} */
      const guard = there.etag === null ? { "If-None-Match": "*" } : { "If-Match": `"${there.etag}"` };
      try {
        const body = { ...choice, existing: existing.checked };
        const kept = await call("PUT", `/rule?folder=${encodeURIComponent(select.value)}`, body, guard);
        written = true;
        dialog.close();
        say(`${kept.rule} says so now.`);
      } catch (error) {
        if (/** @type {any} */ (error).errors?.length > 0) {
          refused = error; // of the arguments: the dialog below shows it, each part at its field
          dialog.close();
          return;
        }
        wrong.textContent = /** @type {Error} */ (error).message;
        await look();
      }
    });
  });
}
