// Dialogs of the page: one that asks yes or no, and a frame for larger ones. The browser's own
// <dialog> keeps the focus inside, closes on Escape, and gives the focus back.

import { element } from "./dom.js";

let made = 0;

/**
 * Show a dialog; it is taken off the page when it closes.
 * @param {string} title its heading and its name
 * @param {(Node | string)[]} children what it shows below the heading
 * @returns {HTMLDialogElement}
 */
export function openDialog(title, ...children) {
  const name = `dialog-${++made}`;
  const heading = element("h2", { id: name, tabindex: "-1" }, title);
  const dialog = /** @type {HTMLDialogElement} */ (
    element("dialog", { "aria-labelledby": name }, heading, ...children));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * Ask whether to do something, in place of the browser's confirm().
 * @param {string} question "Delete day1.mp4?"
 * @param {{what?: string, yes?: string, danger?: boolean}} [options] `what` will be done, in a
 *   sentence; `yes` is the word on the button; with `danger` "no" has the focus at first
 * @returns {Promise<boolean>} false too when the dialog is closed by Escape
 */
export function confirmed(question, { what = "", yes = "yes", danger = false } = {}) {
  const no = element("button", { type: "button" }, "cancel");
  const go = element("button", { type: "button", class: danger ? "danger" : "go" }, yes);
  const dialog = openDialog(question, ...(what ? [element("p", {}, what)] : []),
    element("p", { class: "buttons" }, no, go));
  (danger ? no : go).focus();
  return new Promise((resolve) => {
    no.addEventListener("click", () => dialog.close(""));
    go.addEventListener("click", () => dialog.close("yes"));
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"));
  });
}
