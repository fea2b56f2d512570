// Loads the page of a run, and says so where that can't be had.

import("./viewer.js").catch((/** @type {Error} */ error) => {
  const words = /** @type {HTMLElement} */ (document.getElementById("message"));
  words.textContent = `This run can't be shown in this browser (${error.message}). Load the page anew; if that does not help, `
    + "have nothing block its scripts, or take a newer browser.";
});
