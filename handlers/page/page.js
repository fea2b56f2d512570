// Says which parts of the page can't be had: an extension blocks one, a browser is too old for it. Each is a
// script of its own in index.html and begins by itself, so the others are there. This one needs none of them.

document.getElementById("script")?.remove();
for (const script of /** @type {NodeListOf<HTMLScriptElement>} */ (document.querySelectorAll("script[data-part]"))) {
  // It is not run again: this is told what became of it.
  import(script.src).catch((/** @type {Error} */ error) => {
    const words = document.createElement("p");
    words.className = "why";
    words.setAttribute("role", "alert");
    words.textContent = `${script.dataset.part} can't be had in this browser (${error.message}). Load the page anew; if that `
      + "does not help, have nothing block its scripts, or take a newer browser.";
    document.getElementById(script.dataset.place ?? "")?.after(words);
  });
}
