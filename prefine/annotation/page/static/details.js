// What may be said besides the choice: how much better, criteria, a note.

import { alertUser, announce, at } from "./frame.js";
import { Segments } from "./segments.js";

const OPEN = "prefine-details-open";
const WIDE = "(min-width: 60rem)";

function wasOpen() {
  try {
    const kept = localStorage.getItem(OPEN);
    return kept === null ? window.matchMedia(WIDE).matches : kept === "yes";
  } catch {
    return window.matchMedia(WIDE).matches;
  }
}

/** Wire the details; `changed` is called after each change. */
export function wireDetails(changed) {
  const rows = [...document.querySelectorAll("#options .segments")].map((element) => [element.dataset.name, new Segments(element, changed)]);
  const named = (name) => rows.filter(([each]) => each === name).map(([, row]) => row);
  const [strength] = named("strength");
  const criteria = named("criterion");
  const note = at("note");
  const isEmpty = rows.length === 0 && !note;
  note?.addEventListener("input", () => { fit(note); changed(); });

  function show(open) {
    at("options").hidden = isEmpty || !open;
    at("toggle-options").hidden = isEmpty;
    at("toggle-options").setAttribute("aria-expanded", String(open));
  }

  function toggle(open = at("options").hidden) {
    show(open);
    try {
      localStorage.setItem(OPEN, open ? "yes" : "no");
    } catch {
      // Storage is blocked: it holds until the next item.
    }
  }

  // One criterion after the other: a key says it, and the next one is asked for. Esc ends, as does any other key, which
  // then does what it does elsewhere.
  function ask(keys, letters, index) {
    criteria.forEach((row, each) => row.element.classList.toggle("active", each === index));
    if (index >= criteria.length) return;
    const row = criteria[index];
    announce(`Criterion ${row.name}`);
    keys.once((name) => {
      const value = valueOf(row, name, letters);
      const isSkipped = name === "k" || name === "Enter";
      if (value !== undefined) row.set(value);
      changed();
      ask(keys, letters, value === undefined && !isSkipped ? criteria.length : index + 1);
      return value !== undefined || isSkipped;
    });
  }

  show(wasOpen());
  return {
    toggle: () => toggle(),
    said: () => ({
      strength: strength?.value ? Number(strength.value) : null,
      criteria: Object.fromEntries(criteria.filter((row) => row.value).map((row) => [row.name, row.value])),
      note: note?.value.trim() ?? "",
    }),
    restore(kept) {
      strength?.set(kept.strength ? String(kept.strength) : null);
      for (const row of criteria) row.set(Object.hasOwn(kept.criteria ?? {}, row.name) ? kept.criteria[row.name] : null);
      if (note) note.value = kept.note ?? "";
      if (note) fit(note);
      if (kept.strength || kept.note || Object.keys(kept.criteria ?? {}).length) show(true);
    },
    strength(value) {
      if (!strength) return;
      show(true);
      strength.set(strength.value === value ? null : value);
      changed();
    },
    note() {
      if (!note) return;
      show(true);
      note.focus();
    },
    criteria(keys, letters) {
      if (!criteria.length) {
        alertUser("This project has no criteria.");
        return;
      }
      show(true);
      ask(keys, letters, 0);
    },
  };
}

function valueOf(row, name, letters) {
  if (name === "=" || name === "t") return row.has("tie") ? "tie" : undefined;
  if (row.has("up") && (name === "g" || name === "+")) return "up";
  if (row.has("down") && (name === "b" || name === "-")) return "down";
  return [...letters].find(([id, letter]) => letter.toLowerCase() === name && row.has(id))?.[0];
}

function fit(note) {
  note.style.height = "auto";
  note.style.height = `${Math.min(note.scrollHeight + 2, 160)}px`;
}
