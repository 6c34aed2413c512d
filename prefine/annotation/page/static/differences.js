// What differs between the two answers, shown in plain text on demand.

import { make } from "./elements.js";
import { fold } from "./folding.js";
import { alertUser, at, render } from "./frame.js";
import { post } from "./requests.js";

let isShown = false;

/** Show what differs between the answers of the task with this token, or the answers as they are. An answer that was edited stays as it is. */
export async function toggleDifferences(token, cards, editing) {
  const bodies = cards.map((card) => card.querySelector(".text"));
  if (isShown) {
    cards.forEach((card, index) => {
      if (card.dataset.id === editing.id) render(bodies[index], editing.text);
      else render(bodies[index]);
    });
    mark(false);
    return;
  }
  try {
    const { parts } = await post("/api/differences", { token }, 1);
    parts.forEach((side, index) => {
      if (cards[index].dataset.id === editing.id) return;
      const pieces = side.map(([text, differs]) => (differs ? make("mark", {}, text) : text));
      bodies[index].replaceChildren(make("p", { class: "plain" }, ...pieces));
    });
    mark(true);
  } catch (problem) {
    alertUser(problem.message);
  }
}

function mark(shown) {
  isShown = shown;
  document.body.classList.toggle("comparing", shown);
  at("differences").setAttribute("aria-pressed", String(shown));
  fold();
}
