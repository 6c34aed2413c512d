// Nothing to judge now: all is done, or paused.

import { alertUser, at, enableButtons, nextScreen } from "./frame.js";
import { post } from "./requests.js";
import { leave, undo } from "./undo.js";

async function resume() {
  try {
    await post("/api/pause", { paused: false });
    nextScreen();
  } catch (problem) {
    alertUser(problem.message);
  }
}

at("leave").addEventListener("click", leave);
at("resume")?.addEventListener("click", resume);
at("again")?.addEventListener("click", nextScreen);
at("undo")?.addEventListener("click", () => undo());
document.addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() === "u" && at("undo")) undo();
});
enableButtons();
document.body.dataset.ready = "yes";
