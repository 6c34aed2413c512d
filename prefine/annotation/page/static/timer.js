// How long a task has been looked at; time in which the page is hidden does not count.

let counted = 0;
let since = document.hidden ? null : performance.now();

/** Seconds so far. */
export function seconds() {
  return (counted + (since === null ? 0 : performance.now() - since)) / 1000;
}

/** Begin with this many seconds, of before a reload. */
export function startAt(earlier) {
  if (Number.isFinite(earlier) && earlier > 0) counted += earlier * 1000;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden && since !== null) {
    counted += performance.now() - since;
    since = null;
  } else if (!document.hidden) since ??= performance.now();
});
