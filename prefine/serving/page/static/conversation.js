// The conversation as data: what was asked, what was answered, what the next request says. No DOM here.
//
// turn:    {question, slots, chosen}    a slot for each model that was asked; the conversation goes on with one of them
// slot:    {model, versions, shown}     a version for each time that it was asked
// version: {id, text, state, error, finish, tokens, thumb, correction, better}
//          state is "waiting", "writing", "done", "stopped" or "failed"

const KEPT = "prefine-conversation";

export const newTurn = (question, models) => ({
  question,
  slots: models.map((model) => ({ model, versions: [], shown: 0 })),
  chosen: 0,
});

export const newVersion = () => ({
  id: null,
  text: "",
  state: "waiting",
  error: null,
  finish: null,
  tokens: null,
  thumb: null,
  correction: null,
  better: false,
});

/** The version of a slot that is shown. */
export const shown = (slot) => slot.versions[slot.shown] ?? null;

/** What a version says: as a person corrected it, or as the model wrote it. */
export const said = (version) => version?.correction ?? version?.text ?? "";

/** Whether a version is still being written. */
export const isOpen = (version) => version.state === "waiting" || version.state === "writing";

/** The messages that ask for the answer of the turn with this index. */
export function messagesFor(turns, index, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  turns.slice(0, index + 1).forEach((turn, at) => {
    messages.push({ role: "user", content: turn.question });
    if (at < index) messages.push({ role: "assistant", content: said(shown(turn.slots[turn.chosen])) });
  });
  return messages;
}

/** Whether the conversation can go on: the answer that it would go on with is there. */
export function canGoOn(turns) {
  const last = turns[turns.length - 1];
  return !last || said(shown(last.slots[last.chosen])).trim() !== "";
}

/** Keep the conversation in this tab until it is closed. */
export function keep(turns) {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(turns));
  } catch {
    // Storage is blocked or full: the conversation lives as long as the page.
  }
}

/** The conversation that was kept; what was being written then was stopped by the page's end. */
export function kept() {
  try {
    const turns = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
    for (const slot of turns.flatMap((turn) => turn.slots)) {
      for (const version of slot.versions) if (isOpen(version)) version.state = "stopped";
    }
    return turns;
  } catch {
    return [];
  }
}
