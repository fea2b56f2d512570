"use strict";
// The link has the token behind its #: no server, log or other site sees it there. It is traded for a
// cookie that no script can read, and goes from the address bar and the history.

async function enter() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  history.replaceState(null, "", location.pathname);
  const said = /** @type {HTMLElement} */ (document.getElementById("said"));
  if (!token) {
    said.textContent = "This link lacks its token: open the whole link that posedrop printed.";
    return;
  }
  try {
    const answer = await fetch("/session", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
    if (answer.ok) {
      location.replace("/");
      return;
    }
    said.textContent = "This link's token is not this server's: open the one that posedrop printed last.";
  } catch (error) {
    said.textContent = `posedrop does not answer (${error.message}); open its link again once it is up.`;
  }
}

addEventListener("hashchange", enter); // another link, in the same tab
enter();
