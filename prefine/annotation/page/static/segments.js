// A row of buttons of which one or none is pressed.

/** The row in `element`; `changed` is called after a person has pressed. */
export class Segments {
  constructor(element, changed = () => {}) {
    this.element = element;
    this.name = element.getAttribute("aria-label");
    this.buttons = [...element.querySelectorAll("button")];
    for (const button of this.buttons) {
      button.addEventListener("click", () => {
        this.set(this.value === button.dataset.value ? null : button.dataset.value);
        changed();
      });
    }
  }

  get value() {
    return this.buttons.find((button) => button.getAttribute("aria-pressed") === "true")?.dataset.value ?? null;
  }

  set(value) {
    for (const button of this.buttons) button.setAttribute("aria-pressed", String(button.dataset.value === value));
  }

  has(value) {
    return this.buttons.some((button) => button.dataset.value === value);
  }
}
