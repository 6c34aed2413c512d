// What every screen has: colours, messages, rendered texts.

import { wireTheme } from "./colours.js";
import { dress } from "./elements.js";
import { show } from "./markdown.js";

const ALERT_MS = 8000;
let alertEnds = 0;

export const at = (id) => document.getElementById(id);

/** Show a message for a while. */
export function alertUser(text) {
  const box = at("alert");
  box.textContent = text;
  box.hidden = false;
  clearTimeout(alertEnds);
  alertEnds = setTimeout(() => { box.hidden = true; }, ALERT_MS);
}

/** Take the message away. */
export function clearAlert() {
  at("alert").hidden = true;
}

/** Say something to those who cannot see the page. */
export function announce(text) {
  at("status").textContent = text;
}

/** Give a button of the template its drawing and name. */
export function wireButton(id, icon, act, text = "") {
  const button = at(id);
  if (!button) return;
  dress(button, icon, text);
  if (button.dataset.label) {
    button.title = button.dataset.label;
    button.setAttribute("aria-label", button.dataset.label);
  }
  button.addEventListener("click", act);
}

const sources = new WeakMap();

/** The text of an element as the server sent it. */
export function sourceOf(element) {
  if (!sources.has(element)) sources.set(element, element.textContent);
  return sources.get(element);
}

/** Show an element's text as markdown. */
export function render(element, text = sourceOf(element)) {
  sourceOf(element);
  element.replaceChildren();
  element.classList.add("rendered");
  if (text.trim()) show(element, text);
  else {
    const empty = document.createElement("p");
    empty.className = "note";
    empty.textContent = "(empty)";
    element.append(empty);
  }
}

/** Enable the buttons of a card: the template disables them, as a press before they are wired would be lost. */
export function enableButtons() {
  for (const button of document.querySelectorAll(".card button")) button.disabled = false;
}

/** Load the screen that is next; not as a reload, which would keep the place on the page. */
export function nextScreen() {
  location.replace("/");
}

history.scrollRestoration = "manual"; // every screen begins at its top
wireTheme(at("theme"));
for (const element of document.querySelectorAll("[data-markdown]")) render(element);
