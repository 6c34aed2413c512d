// What a person chose on this page, kept in this browser.

const NAME = "prefine-settings";
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
