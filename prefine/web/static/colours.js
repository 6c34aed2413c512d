// The colours that a person chose: the system's, light or dark. Kept in this browser; theme.js applies them.

import { dress } from "./elements.js";

const THEMES = ["system", "light", "dark"];
const THEME_NAMES = { system: "Colours of the system", light: "Light colours", dark: "Dark colours" };

const theme = () => document.documentElement.dataset.theme ?? "system";

/** Take the next theme. */
function nextTheme() {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("prefine-theme", next);
  } catch {
    // Storage is blocked: it holds until the page is left.
  }
}

/** Give a button its drawing and name, and let it take the next theme. */
export function wireTheme(button) {
  const show = () => {
    button.title = THEME_NAMES[theme()];
    button.setAttribute("aria-label", THEME_NAMES[theme()]);
  };
  dress(button, "theme");
  button.addEventListener("click", () => {
    nextTheme();
    show();
  });
  show();
}
