// An answer that a person edits: the edited text is kept as a better answer. One answer of an item can be edited.

import { dress, make } from "./elements.js";
import { alertUser, render, sourceOf } from "./frame.js";
import { fold, unfold } from "./folding.js";

export class Editing {
  constructor(cards, changed) {
    this.cards = cards;
    this.changed = changed;
    this.id = null;
    this.text = null;
    for (const card of cards) {
      const button = card.querySelector(".edit");
      dress(button, "edit");
      button.title = button.dataset.label;
      button.setAttribute("aria-label", `${button.dataset.label}: ${card.dataset.letter}`);
      button.addEventListener("click", () => this.open(card));
    }
  }

  /** What a ballot says of it. */
  get said() {
    return this.text === null ? {} : { text: this.text, text_of: this.id };
  }

  /** Take an edit up again. */
  restore(id, text) {
    const card = this.cards.find((each) => each.dataset.id === id);
    if (!card || typeof text !== "string") return;
    this.take(card, text);
  }

  open(card) {
    if (this.id !== null && this.id !== card.dataset.id) {
      alertUser("One answer of an item can be edited. Discard the other edit first.");
      return;
    }
    if (card.querySelector(".editor")) return;
    unfold();
    const body = card.querySelector(".text");
    const area = make("textarea", { value: this.text ?? sourceOf(body), "aria-label": `Edited answer ${card.dataset.letter}` });
    const close = () => {
      form.remove();
      document.body.classList.remove("editing");
      body.hidden = false;
      card.querySelector(".edit").focus();
    };
    const form = make("form", { class: "editor" }, area,
      make("div", { class: "row" },
        make("button", { type: "button", class: "quiet", onclick: () => { close(); this.discard(card); } }, "Discard"),
        make("button", { type: "submit", class: "primary" }, "Keep the edit")));
    form.onsubmit = (event) => {
      event.preventDefault();
      close();
      if (!area.value.trim()) alertUser("An edited answer cannot be empty; the answer is as it was.");
      if (!area.value.trim() || area.value === sourceOf(body).replace(/\r\n?/g, "\n")) this.discard(card);
      else this.take(card, area.value);
    };
    area.onkeydown = (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
      if (event.key === "Escape") close();
      event.stopPropagation();
    };
    body.hidden = true;
    document.body.classList.add("editing");
    body.after(form);
    area.style.height = `${Math.min(area.scrollHeight + 4, window.innerHeight * 0.6)}px`;
    area.setSelectionRange(0, 0);
    area.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  }

  take(card, text) {
    this.id = card.dataset.id;
    this.text = text;
    const body = card.querySelector(".text");
    render(body, text);
    this.mark(card, "Edited by you");
    fold();
    this.changed();
  }

  discard(card) {
    this.id = null;
    this.text = null;
    render(card.querySelector(".text"));
    this.mark(card, "");
    fold();
    this.changed();
  }

  mark(card, text) {
    card.classList.toggle("edited", text !== "");
    card.querySelector(".edited-mark")?.remove();
    if (text) card.querySelector(".spacer").before(make("span", { class: "edited-mark" }, text));
  }
}
