// How DOM nodes are made here: by name, with text as text. Nothing on this page is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  up: "M7 10v11H3V10zM7 20h10.2a2 2 0 0 0 2-1.6l1.5-7a2 2 0 0 0-2-2.4H14l1-4.6A2 2 0 0 0 13 2l-6 8",
  down: "M17 14V3h4v11zM17 4H6.8a2 2 0 0 0-2 1.6l-1.5 7a2 2 0 0 0 2 2.4H10l-1 4.6a2 2 0 0 0 2 2.4l6-8",
  edit: "M4 20h4L19 9a2.8 2.8 0 0 0-4-4L4 16zM13.5 6.5l4 4",
  again: "M20 11a8 8 0 1 0-2.3 6M20 4v7h-7",
  copy: "M9 9h11v12H9zM5 15H4V3h11v2",
  previous: "M14 6l-6 6 6 6",
  next: "M10 6l6 6-6 6",
  send: "M12 20V5M5 12l7-7 7 7",
  stop: "M7 7h10v10H7z",
  plus: "M12 5v14M5 12h14",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4",
  theme: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  compare: "M4 5h7v14H4zM13 5h7v14h-7z",
  latest: "M12 5v14M5 12l7 7 7-7",
  better: "M12 3l2.7 5.8 6.3.8-4.6 4.3 1.2 6.3L12 17l-5.6 3.2 1.2-6.3L3 9.6l6.3-.8z",
  check: "M5 12.5l5 5L19 7",
  undo: "M9 14l-5-5 5-5M4 9h10a6 6 0 0 1 0 12h-3",
  pause: "M8 5v14M16 5v14",
  play: "M7 4l13 8-13 8z",
  keys: "M3 6h18v12H3zM7 10h.01M11 10h.01M15 10h.01M8 14h8",
  instructions: "M6 3h9l4 4v14H6zM9 11h7M9 15h7",
  fold: "M7 4l5 5 5-5M7 20l5-5 5 5",
  differences: "M5 8h9M5 16h9M18 5v6M15 8h6M15 16h6",
  leave: "M10 4H4v16h6M9 12h11M16 8l4 4-4 4",
  details: "M6 9l6 6 6-6",
};

/** An element with properties and children; children are nodes or texts. */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") element.className = value;
    else if (key.startsWith("aria-") || key === "role") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A drawing that says nothing to screen readers; its button has the label. */
export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  drawing.append(path);
  return drawing;
}

/** A button with a drawing; `label` is what it does, `text` stands beside the drawing if given. */
export function iconButton(name, label, onclick, text = "") {
  const button = make("button", { type: "button", class: "quiet", title: label, "aria-label": label, onclick });
  dress(button, name, text);
  return button;
}

/** Give a button its drawing. */
export function dress(button, name, text = "") {
  button.replaceChildren(icon(name), ...(text ? [make("span", {}, text)] : []));
}
