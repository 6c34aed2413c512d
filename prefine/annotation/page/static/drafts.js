// What was begun on a task outlives a reload and comes back after an undo; it stays in this tab.

const NAME = "prefine-annotation-draft";

/** Keep the draft of a task; `token` null: of whichever task is next. */
export function keepDraft(token, draft) {
  try {
    sessionStorage.setItem(NAME, JSON.stringify({ token, draft }));
  } catch {
    // Storage is blocked or full: the draft lives as long as the page.
  }
}

/** The draft of a task, or null. */
export function keptDraft(token) {
  try {
    const kept = JSON.parse(sessionStorage.getItem(NAME) ?? "null");
    return kept && (kept.token === token || kept.token === null) ? kept.draft : null;
  } catch {
    return null;
  }
}

/** Forget it. */
export function dropDraft() {
  try {
    sessionStorage.removeItem(NAME);
  } catch {
    // As above.
  }
}
