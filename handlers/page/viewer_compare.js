// The frames in which two runs of a film differ most, to click through: GET /compare says which.

import { ApiError, call } from "./api.js";
import { byId, element } from "./dom.js";
import { within } from "./viewer_poses.js";

const ASK_AGAIN_MS = 2000;

/** @param {import("./viewer.js").State} state @param {string} a @param {string} b runs */
export async function differences(state, a, b) {
  byId("apart").hidden = false;
  const said = byId("apart-said");
  said.textContent = "Circles are of this run, squares of the other one. They are being compared.";
  try {
    const answer = await compared(a, b);
    const { total, worst } = answer;
    const isSeveral = state.poses.individuals.length > 1;
    const median = total.median === null ? "" : `; half of the positions are within ${total.median.toFixed(2)} pixels`;
    said.textContent = `Circles are of this run, squares of the other one, ${answer.b.analysis_id}. `
      + `${total.positions} positions are compared${median}.`;
    byId("differences").append(...worst.map((/** @type {any} */ each) => {
      const who = within(isSeveral && each.individual ? `${each.individual} ${each.bodypart}` : each.bodypart);
      const go = () => { state.film.pause(); state.film.seek(state.poses.rowOf(each.frame)); };
      return element("li", {}, element("button", { onclick: go },
        `frame ${each.frame}: ${who}, ${each.distance.toFixed(1)} pixels${each.sure ? "" : ", one is unsure"}`));
    }));
  } catch (error) {
    if (error instanceof ApiError && error.code === "different_films") {
      state.layers.pop();
      state.draw();
      state.plot();
      said.textContent = error.message;
      return;
    }
    said.textContent = `Circles are of this run, squares of the other one. They could not be compared: ${error.message}`;
  }
}

/** Wait for the comparison. @param {string} a @param {string} b @returns {Promise<any>} */
async function compared(a, b) {
  for (;;) {
    try {
      return await call("GET", `/compare?a=${encodeURIComponent(a)}&b=${encodeURIComponent(b)}`);
    } catch (error) {
      if (!(error instanceof ApiError) || error.code !== "being_made") throw error;
      await new Promise((resolve) => { setTimeout(resolve, ASK_AGAIN_MS); });
    }
  }
}
