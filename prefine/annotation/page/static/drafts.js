// What was begun on items outlives a reload, a pause and an undo; it stays in this tab, and is its annotator's alone.

const NAME = "prefine-annotation-drafts";
const MOST = 50;
const annotator = document.querySelector("meta[name=annotator]").content;

/** The name of an item: the ids of its answers, in any order. The token of a task changes when the item comes again. */
export function itemOf(answers) {
  return [...answers].sort().join(" ");
}

/** Keep the draft of an item. Of many drafts the oldest are forgotten. */
export function keepDraft(item, draft) {
  const kept = read();
  kept.delete(item); // the newest is the last
  kept.set(item, draft);
  while (kept.size > MOST) kept.delete(kept.keys().next().value);
  while (!write(kept) && kept.size > 1) kept.delete(kept.keys().next().value);
}

/** The draft of an item, or null. */
export function keptDraft(item) {
  return read().get(item) ?? null;
}

/** Forget the draft of an item. */
export function dropDraft(item) {
  const kept = read();
  kept.delete(item);
  write(kept);
}

/** Forget all of them. */
export function dropDrafts() {
  write(new Map());
}

function read() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(NAME) ?? "null");
    return new Map(kept?.annotator === annotator ? kept.drafts : []);
  } catch {
    return new Map();
  }
}

/** Whether there was room. Where storage is blocked, a draft lives as long as the page. */
function write(kept) {
  try {
    sessionStorage.setItem(NAME, JSON.stringify({ annotator, drafts: [...kept] }));
    return true;
  } catch {
    return false;
  }
}
