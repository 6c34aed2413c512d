// Undo: the latest vote is taken back, and its item comes again with what was said of it.

import { dropDrafts, itemOf, keepDraft } from "./drafts.js";
import { alertUser, nextScreen } from "./frame.js";
import { post } from "./requests.js";

let isBusy = false;

/** Take the latest vote back. `leaving` is called before this screen goes. */
export async function undo(leaving = () => {}) {
  if (isBusy) return;
  isBusy = true;
  try {
    const { ballot, answers } = await post("/api/undo", {}, 1);
    if (ballot) {
      leaving();
      keepDraft(itemOf(answers), ballot);
      nextScreen();
      return;
    }
    alertUser("There is no vote to undo.");
  } catch (problem) {
    alertUser(problem.message);
  }
  isBusy = false;
}

/** End the session. */
export async function leave() {
  try {
    await post("/api/leave");
    dropDrafts(); // whoever comes next is somebody else
    nextScreen();
  } catch (problem) {
    alertUser(problem.message);
  }
}
