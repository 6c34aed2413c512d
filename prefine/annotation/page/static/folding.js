// Long texts are folded, all answers alike, so that a long one has no advantage and no screen is endless.

import { dress } from "./elements.js";

const SLACK = 1.25; // what is a little too long is not folded

const folders = [...document.querySelectorAll(".folding")];
let isOpen = false;

function long() {
  const rem = Number.parseFloat(getComputedStyle(document.documentElement).fontSize);
  return folders.filter((folder) => {
    const most = Number.parseFloat(getComputedStyle(folder).getPropertyValue("--folded")) * rem;
    return folder.firstElementChild.scrollHeight > most * SLACK;
  });
}

/** Look again at what is long, as when a text has changed. */
export function fold() {
  const folded = new Set(long());
  for (const folder of folders) {
    const button = folder.parentElement.querySelector(".unfold");
    folder.classList.toggle("folded", folded.has(folder) && !isOpen);
    button.hidden = !folded.has(folder);
    dress(button, "fold", isOpen ? "Fold" : "Show all");
  }
}

/** Fold long texts, or unfold them. */
export function toggleFolding() {
  isOpen = !isOpen;
  fold();
}

/** Show a text whole, as when it is edited. */
export function unfold() {
  isOpen = true;
  fold();
}

/** Fold what is long; again when the window changes. */
export function wireFolding() {
  for (const folder of folders) folder.parentElement.querySelector(".unfold").addEventListener("click", toggleFolding);
  let width = 0;
  new ResizeObserver(() => {
    if (window.innerWidth !== width) fold();
    width = window.innerWidth;
  }).observe(document.body);
}
