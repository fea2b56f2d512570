// Keeps the focus on the page: where the control that has it goes (its row was deleted, its words are others now),
// the same control of what came in its place gets it, or what was around it. Else a keyboard begins from the top.

/** @type {HTMLElement | null} what had the focus last, unless a pointer took it away */
let last = null;
/** @type {HTMLElement[]} what is around it, the nearest first */
let around = [];
let due = false;

/** @param {Element} node */
const isSeen = (node) => node.isConnected && node.getClientRects().length > 0;
/** @param {Element} node */
const nameOf = (node) => node.getAttribute("aria-label") ?? node.textContent;

function look() {
  due = false;
  const { activeElement } = document;
  if (last === null || (activeElement !== document.body && activeElement !== last)) return;
  if (isSeen(last)) {
    if (activeElement === document.body) last.focus({ preventScroll: true }); // it was away for a moment
    return;
  }
  const name = nameOf(last);
  for (const node of around) {
    if (!isSeen(node)) continue;
    const same = node.tagName === "MAIN" ? undefined : [...node.querySelectorAll("a, button")].find((each) => nameOf(each) === name && isSeen(each));
    const next = same ?? (node.tabIndex >= 0 || node.tagName === "MAIN" ? node : null);
    if (!(next instanceof HTMLElement)) continue;
    next.focus({ preventScroll: true });
    return;
  }
  document.querySelector("main")?.focus({ preventScroll: true });
}

addEventListener("focusin", ({ target }) => {
  last = /** @type {HTMLElement} */ (target);
  around = [];
  for (let node = last.parentElement; node !== null; node = node.parentElement) around.push(node);
});
addEventListener("pointerdown", () => { last = null; });
new MutationObserver(() => {
  if (due || last === null) return;
  due = true;
  requestAnimationFrame(look);
}).observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ["hidden"] });
