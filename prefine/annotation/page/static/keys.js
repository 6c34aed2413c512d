// Keys of a screen. None acts while somebody writes, while a dialog is open, or when it is held down.

const SCROLLS = "pre, .table"; // arrows move these

/**
 * Listen. `actions`: key -> function; letters are lower case. `undo` is for Ctrl+Z, `commit` for Ctrl+Enter in a text.
 * The result's `once(act)` gives the next key to `act`; if that returns false, the key's own action follows.
 */
export function listenForKeys(actions, { undo, commit }) {
  let waiting = null;
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || event.altKey || event.repeat || document.querySelector("dialog[open]")) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const withControl = event.ctrlKey || event.metaKey;
    if (event.target.closest("textarea, input")) {
      if (name === "Escape") event.target.blur();
      if (name === "Enter" && withControl) commit();
      return;
    }
    if (withControl) {
      if (name === "z") act(event, undo);
      if (name === "Enter") act(event, commit);
      return;
    }
    if (waiting) {
      const give = waiting;
      waiting = null;
      event.preventDefault();
      if (give(name) !== false || name === "Escape") return;
    }
    if (name.startsWith("Arrow") && event.target.closest(SCROLLS)) return;
    if (name === "Enter" && event.target.closest("button:not(.chip), summary, a")) return;
    if (Object.hasOwn(actions, name)) act(event, actions[name]);
  });
  return { once: (give) => { waiting = give; } };
}

function act(event, action) {
  event.preventDefault();
  action();
}
