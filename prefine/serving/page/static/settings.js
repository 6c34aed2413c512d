// What a person chose on this page, kept in this browser.

const NAME = "prefine-settings";
const THEMES = ["system", "light", "dark"];
const USUAL = { system: "", temperature: 0.7, longest: null, model: "", second: "", compare: false };

function stored() {
  try {
    return JSON.parse(localStorage.getItem(NAME) ?? "{}");
  } catch {
    return {};
  }
}

export const settings = { ...USUAL, ...stored() };

/** Change settings and keep them. */
export function change(values) {
  Object.assign(settings, values);
  try {
    localStorage.setItem(NAME, JSON.stringify(settings));
  } catch {
    // Storage is blocked: they hold until the page is left.
  }
}

/** The theme that is chosen: the system's, light or dark. */
export const theme = () => document.documentElement.dataset.theme ?? "system";

/** Take the next theme. */
export function nextTheme() {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("prefine-theme", next);
  } catch {
    // As above.
  }
  return next;
}
