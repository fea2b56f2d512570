// Loads the page of a run: anew if its scripts don't come, and says so where they can't be had.

/** How often it is loaded anew, and after what time. */
const [MOST, AFTER_MS] = [3, 2000];
const COUNT = `loaded anew: ${location.pathname}`;

/** Count that it is loaded anew; tell if it may be. A browser that keeps nothing for pages can't count. */
function counted() {
  try {
    const times = Number(sessionStorage.getItem(COUNT) ?? 0);
    sessionStorage.setItem(COUNT, String(times + 1));
    return times < MOST;
  } catch {
    return false;
  }
}

import("./viewer.js").then(() => {
  try {
    sessionStorage.removeItem(COUNT);
  } catch { /* nothing is kept there */ }
}, (/** @type {Error} */ error) => {
  const words = /** @type {HTMLElement} */ (document.getElementById("message"));
  // Of scripts that came, but can't be read, it is a SyntaxError.
  if (error instanceof TypeError && counted()) {
    words.textContent = `Scripts of this page did not come (${error.message}): it is loaded anew.`;
    setTimeout(() => location.reload(), AFTER_MS);
    return;
  }
  words.textContent = `This run can't be shown in this browser (${error.message}). Load the page anew; if that does not help, `
    + "have nothing block its scripts, or take a newer browser.";
});
