// The table of files.

import { ApiError, call } from "./api.js";
import { confirmed } from "./dialog.js";
import { element, inWords, ofSize, onTwoLines, picture } from "./dom.js";
import { part, say, told } from "./say.js";
import { refresh } from "./stream.js";

/** @param {any} probe */
function describeVideo(probe) {
  if (!probe) return [];
  const lines = [`${probe.width}×${probe.height}, ${probe.duration.toFixed(1)} s`, `${inWords(probe.frames)} frames`];
  return lines.map((line) => element("div", {}, line));
}

/** @param {any} file */
export function fileRow(file) {
  const name = element("td", { title: file.key }, element("div", {}, file.filename),
    element("div", { class: "small" }, file.file_id));
  const state = element("td", {}, element("span", { class: `state ${file.state}` }, file.state));
  if (file.refusal) state.append(element("div", { class: "why", title: file.refusal.message }, file.refusal.message));
  if (file.waiting) state.append(element("div", { class: "why" }, `waits, ${file.waiting.rule} is wrong`));
  if (file.duplicate_of) state.append(element("div", { class: "small" }, `same as ${file.duplicate_of}`));
  const image = ["ready", "film gone"].includes(file.state)
    ? picture(file.file_id) : "";
  const remove = element("button", {
    onclick: told(async () => {
      const what = "The film and all its results go for good.";
      if (!await confirmed(`Delete ${file.filename}?`, { what, yes: "delete", danger: true })) return;
      try {
        await call("DELETE", `/upload/${file.file_id}`);
      } catch (error) {
        if (!(error instanceof ApiError) || ![404, 410].includes(error.status)) throw error;
        say(`${file.filename} is gone already.`); // by somebody else, or in another tab
      }
      refresh();
    }),
  }, "delete");
  const ask = element("button", { "aria-haspopup": "dialog", onclick: told(async () => (await part(import("./choose.js"))).analyse(file)) }, "analyse");
  return element("tr", {}, element("td", {}, image), name, state,
    element("td", {}, ...describeVideo(file.probe)), element("td", { class: "no-wrap" }, ofSize(file.size)),
    element("td", { class: "no-wrap" }, ...onTwoLines(file.created_at)),
    element("td", { class: "no-wrap" }, file.state === "ready" ? ask : "", " ", remove));
}
