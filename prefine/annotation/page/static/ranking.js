// A ranking of answers: letters in a row, best first, with ">" or "=" between them. Tapped, typed, moved or dragged.

import { make } from "./elements.js";

const DRAG_FROM = 6; // pixels; less is a tap

export class Ranking {
  /** `letters`: id -> letter in the order shown; `changed` is called after each change. */
  constructor(element, letters, changed) {
    this.letters = letters;
    this.allowTies = element.dataset.ties === "yes";
    this.changed = changed;
    this.places = []; // {id, tied}: tied with the one before it
    this.row = element.querySelector(".places");
    this.tray = element.querySelector(".tray");
    this.tieNext = false;
    this.draw();
  }

  get isComplete() {
    return this.places.length === this.letters.size;
  }

  /** Groups of ids, best first. */
  get groups() {
    const groups = [];
    for (const { id, tied } of this.places) {
      if (tied && groups.length) groups[groups.length - 1].push(id);
      else groups.push([id]);
    }
    return groups;
  }

  set(groups) {
    this.places = groups.flatMap((group) => group.filter((id) => this.letters.has(id)).map((id, index) => ({ id, tied: index > 0 })));
    this.draw();
  }

  /** A letter was typed: it comes next. One that is ranked already goes back. */
  type(letter) {
    const id = [...this.letters].find(([, each]) => each.toLowerCase() === letter)?.[0];
    if (id) this.tap(id);
    return id !== undefined;
  }

  /** The next letter is as good as the last one. */
  typeTie() {
    this.tieNext = this.allowTies && this.places.length > 0 && !this.isComplete;
    this.draw();
  }

  removeLast() {
    this.places.pop();
    this.tieNext = false;
    this.update();
  }

  tap(id) {
    const index = this.places.findIndex((place) => place.id === id);
    if (index < 0) this.places.push({ id, tied: this.tieNext });
    else this.take(index);
    this.tieNext = false;
    this.update();
  }

  take(index) {
    const [taken] = this.places.splice(index, 1);
    if (!taken.tied && this.places[index]) this.places[index].tied = false;
  }

  move(id, to) {
    const index = this.places.findIndex((place) => place.id === id);
    if (index >= 0) this.take(index);
    this.places.splice(to, 0, { id, tied: false });
    if (this.places[to + 1] && to === 0) this.places[to + 1].tied = false;
    this.update();
  }

  update() {
    if (this.places.length) this.places[0].tied = false;
    this.draw();
    this.changed();
  }

  draw() {
    const focused = document.activeElement?.dataset?.chip;
    const row = [];
    this.places.forEach(({ id, tied }, index) => {
      if (index) row.push(this.separator(index, tied));
      row.push(this.chip(id));
    });
    if (this.tieNext) row.push(make("span", { class: "separator" }, "="));
    if (!row.length) row.push(make("span", { class: "hint" }, "Tap the letters, best first"));
    this.row.replaceChildren(...row);
    const ranked = new Set(this.places.map((place) => place.id));
    const waiting = [...this.letters.keys()].filter((id) => !ranked.has(id));
    this.tray.replaceChildren(make("span", { class: "hint" }, "to rank"), ...waiting.map((id) => this.chip(id)));
    if (focused) document.querySelector(`[data-chip="${CSS.escape(focused)}"]`)?.focus();
  }

  separator(index, tied) {
    if (!this.allowTies) return make("span", { class: "separator" }, ">");
    const label = tied ? "As good as the one before; make it worse" : "Worse than the one before; make it as good";
    const toggle = () => {
      this.places[index].tied = !tied;
      this.update();
    };
    return make("button", { type: "button", class: "separator", title: label, "aria-label": label, onclick: toggle }, tied ? "=" : ">");
  }

  chip(id) {
    const letter = this.letters.get(id);
    const chip = make("button", { type: "button", class: "chip", "aria-label": `Answer ${letter}` }, letter);
    chip.dataset.chip = id;
    chip.onkeydown = (event) => this.step(event, id);
    chip.onclick = (event) => {
      if (event.detail === 0) this.tap(id); // by a key; a pointer's tap ends in `drop`
    };
    chip.onpointerdown = (event) => this.drag(event, chip, id);
    return chip;
  }

  // Arrows move a letter; Enter saves the ranking also where a letter has the focus, and Space taps it.
  step(event, id) {
    if (event.key === "Enter") event.preventDefault();
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const index = this.places.findIndex((place) => place.id === id);
    if (!by || index < 0) return;
    event.preventDefault();
    event.stopPropagation();
    const to = index + by;
    if (to >= 0 && to < this.places.length) this.move(id, to);
  }

  drag(event, chip, id) {
    if (event.button !== 0) return;
    const start = { x: event.clientX, y: event.clientY };
    let isDragged = false;
    chip.setPointerCapture(event.pointerId);
    const go = (moved) => {
      const [x, y] = [moved.clientX - start.x, moved.clientY - start.y];
      isDragged ||= Math.hypot(x, y) > DRAG_FROM;
      if (!isDragged) return;
      chip.classList.add("dragged");
      chip.style.transform = `translate(${x}px, ${y}px)`;
    };
    const end = (dropped) => {
      chip.onpointermove = chip.onpointerup = chip.onpointercancel = null;
      chip.classList.remove("dragged");
      chip.style.transform = "";
      if (dropped.type === "pointercancel") return;
      if (!isDragged) this.tap(id);
      else this.drop(id, dropped.clientX, dropped.clientY);
    };
    chip.onpointermove = go;
    chip.onpointerup = chip.onpointercancel = end;
  }

  drop(id, x, y) {
    const tray = this.tray.getBoundingClientRect();
    if (this.tray.offsetWidth && x >= tray.left && x <= tray.right && y >= tray.top && y <= tray.bottom) {
      const index = this.places.findIndex((place) => place.id === id);
      if (index >= 0) this.take(index);
      this.update();
      return;
    }
    const others = [...this.row.querySelectorAll(".chip")].filter((chip) => chip.dataset.chip !== id);
    this.move(id, others.filter((chip) => middle(chip) < x).length);
  }
}

function middle(chip) {
  const { left, width } = chip.getBoundingClientRect();
  return left + width / 2;
}
