// One turn of the conversation on the page: the question, and an answer for each model that was asked.

import { isOpen, said, shown } from "./conversation.js";
import { iconButton, make } from "./elements.js";
import { show } from "./markdown.js";

/** Draws a turn. `actions` are what its buttons do; `feedback` is what the server does with feedback. */
export class TurnView {
  constructor(turn, actions, feedback) {
    this.turn = turn;
    this.actions = actions;
    this.feedback = feedback;
    this.question = make("section", { class: "question", "aria-label": "You" });
    this.answers = turn.slots.map(() => make("section", { class: "answer" }));
    this.bodies = turn.slots.map(() => make("div", { class: "text" }));
    const columns = make("div", { class: turn.slots.length > 1 ? "answers two" : "answers" }, ...this.answers);
    this.element = make("article", { class: turn.slots.length > 1 ? "turn wide" : "turn" }, this.question, columns);
    this.draw();
  }

  draw() {
    this.drawQuestion();
    this.turn.slots.forEach((slot, at) => this.drawAnswer(at));
  }

  drawQuestion() {
    const edit = iconButton("edit", "Edit and send again", () => this.editQuestion());
    this.question.replaceChildren(
      make("div", { class: "bubble" }, this.turn.question),
      make("div", { class: "actions" }, edit),
    );
  }

  editQuestion() {
    const send = (text) => {
      if (text.trim()) this.actions.resubmit(this.turn, text);
    };
    const note = "What follows this message is removed.";
    this.question.replaceChildren(editor("Edit message", this.turn.question, "Send", note, send, () => this.drawQuestion()));
    this.question.querySelector("textarea").focus();
    this.question.scrollIntoView({ block: "nearest" });
  }

  /** While an answer is being written only its text changes. */
  drawText(at) {
    const version = shown(this.turn.slots[at]);
    if (version) show(this.bodies[at], said(version));
  }

  // An answer that is being corrected stays until that is done.
  drawAnswer(at) {
    const slot = this.turn.slots[at];
    const version = shown(slot);
    const answer = this.answers[at];
    if (answer.querySelector(".editor")) return;
    answer.setAttribute("aria-label", `Answer of ${slot.model}`);
    answer.setAttribute("aria-busy", String(version !== null && isOpen(version)));
    const isChosen = this.turn.chosen === at;
    answer.classList.toggle("chosen", this.turn.slots.length > 1 && isChosen);
    if (version === null) {
      answer.replaceChildren(this.heading(slot, at));
      return;
    }
    this.drawText(at);
    answer.replaceChildren(this.heading(slot, at), this.bodies[at], ...this.notes(version), this.buttons(slot, version, at));
  }

  heading(slot, at) {
    const heading = make("div", { class: "heading" }, make("span", { class: "model" }, slot.model));
    if (this.turn.slots.length > 1) {
      const choose = make("input", { type: "radio", checked: this.turn.chosen === at, name: groupName(this.turn) });
      choose.onchange = () => this.actions.choose(this.turn, at);
      heading.append(make("label", { class: "choice" }, choose, "Go on with this one"));
    }
    return heading;
  }

  notes(version) {
    const notes = [];
    if (version.state === "waiting") notes.push(make("div", { class: "dots", role: "img", "aria-label": "Waiting" }, make("i"), make("i"), make("i")));
    if (version.correction !== null) {
      const original = make("div", { class: "text" });
      show(original, version.text);
      notes.push(make("details", { class: "note" }, make("summary", {}, "Corrected by you. What the model wrote"), original));
    }
    if (version.state === "stopped") notes.push(make("p", { class: "note" }, "Stopped."));
    if (version.finish === "length") notes.push(make("p", { class: "note" }, "Cut at the longest answer allowed."));
    if (version.error) notes.push(make("p", { class: "problem", role: "alert" }, version.error));
    if (version.state === "done" && !said(version).trim()) notes.push(make("p", { class: "note" }, "The answer is empty."));
    return notes;
  }

  buttons(slot, version, at) {
    const row = make("div", { class: "actions" });
    if (isOpen(version)) return row;
    row.append(...this.versionButtons(slot, at), ...this.feedbackButtons(version, at));
    if (navigator.clipboard && said(version)) {
      row.append(iconButton("copy", "Copy", () => navigator.clipboard.writeText(said(version))));
    }
    if (this.actions.isLast(this.turn)) {
      row.append(iconButton("again", "Answer again", () => this.actions.regenerate(this.turn, at)));
    }
    if (version.tokens) row.append(make("span", { class: "figures" }, `${version.tokens} tokens`));
    return row;
  }

  versionButtons(slot, at) {
    const count = slot.versions.length;
    if (count < 2) return [];
    const go = (step) => () => this.actions.show(this.turn, at, slot.shown + step);
    const previous = iconButton("previous", "Earlier answer", go(-1));
    const next = iconButton("next", "Later answer", go(1));
    previous.disabled = slot.shown === 0;
    next.disabled = slot.shown === count - 1;
    const place = make("span", { class: "figures", "aria-label": `Answer ${slot.shown + 1} of ${count}` }, `${slot.shown + 1}/${count}`);
    return [previous, place, next];
  }

  // Only of finished answers: the server knows no others.
  feedbackButtons(version, at) {
    if (!this.feedback.enabled || version.state !== "done" || !version.id) return [];
    const toggle = (name, label, pressed, act, text = "") => {
      const button = iconButton(name, label, act, text);
      button.setAttribute("aria-pressed", String(pressed));
      return button;
    };
    const thumb = (kind) => () => this.actions.vote(version, kind, () => this.drawAnswer(at));
    const buttons = [
      toggle("up", "Good answer", version.thumb === "up", thumb("up")),
      toggle("down", "Bad answer", version.thumb === "down", thumb("down")),
    ];
    if (this.feedback.stores_texts) buttons.push(iconButton("edit", "Correct this answer", () => this.editAnswer(at)));
    const other = this.turn.slots.length === 2 ? shown(this.turn.slots[1 - at]) : null;
    if (other && other.state === "done" && other.id) {
      const prefer = () => this.actions.prefer(this.turn, at);
      buttons.push(toggle("better", "Better than the other answer", version.better, prefer, "Better"));
    }
    return buttons;
  }

  editAnswer(at) {
    const version = shown(this.turn.slots[at]);
    const note = "The server keeps your text as the answer that should have been given.";
    const leave = () => {
      this.answers[at].replaceChildren();
      this.drawAnswer(at);
    };
    const save = (text) => this.actions.correct(version, text, leave);
    const form = editor("Corrected answer", said(version), "Save", note, save, leave);
    this.answers[at].replaceChildren(this.heading(this.turn.slots[at], at), form);
    form.querySelector("textarea").focus();
    form.scrollIntoView({ block: "nearest" });
  }
}

let groups = 0;
const names = new WeakMap();

function groupName(turn) {
  if (!names.has(turn)) names.set(turn, `chosen-${(groups += 1)}`);
  return names.get(turn);
}

// A text area in the place of a text. Ctrl or Cmd + Enter sends, Esc leaves.
function editor(label, text, verb, note, send, leave) {
  const area = make("textarea", { value: text, "aria-label": label, rows: Math.min(12, text.split("\n").length + 1) });
  const form = make(
    "form",
    { class: "editor" },
    area,
    make("p", { class: "note" }, note),
    make("div", { class: "row" },
      make("button", { type: "button", class: "quiet", onclick: leave }, "Cancel"),
      make("button", { type: "submit", class: "primary" }, verb)),
  );
  form.onsubmit = (event) => {
    event.preventDefault();
    send(area.value);
  };
  area.onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing) form.requestSubmit();
    if (event.key === "Escape") {
      event.stopPropagation();
      leave();
    }
  };
  return form;
}
