// Live parts: the server sends a fragment whenever it changes. Without scripts the page still works.
"use strict";
// The server gives a sign of life every 10 s and ends a stream every 5 min; then the browser connects again at once.
const SILENT_MS = 30_000, GRACE_MS = 4_000, AGAIN_MS = 5_000;

// How to find again, in the fragment that replaces it, what the keyboard is in.
function mark(element) {
  if (element.id) return `#${CSS.escape(element.id)}`;
  for (const name of ["aria-label", "href"]) {
    const value = element.getAttribute(name);
    if (value) return `${element.localName}[${name}="${CSS.escape(value)}"]`;
  }
  return null;
}

function follow(part) {
  const note = document.createElement("p");
  note.className = "note bad"; note.hidden = true; note.setAttribute("role", "alert");
  part.before(note);
  let source = null, heard = new Date(), silence = 0, again = 0;

  function hear() {
    heard = new Date(); note.hidden = true; note.replaceChildren(); part.classList.remove("stale");
    clearTimeout(silence);
    silence = setTimeout(renew, SILENT_MS);
  }
  function doubt(...more) {
    if (!note.hidden && !more.length) return;
    const time = document.createElement("time");
    time.dateTime = heard.toISOString();
    time.textContent = `${heard.getHours()}`.padStart(2, "0") + ":" + `${heard.getMinutes()}`.padStart(2, "0");
    note.replaceChildren("Not live since ", time, ": what stands below may have changed. ", ...more);
    note.hidden = false; part.classList.add("stale");
  }
  function connect() {
    source = new EventSource(part.dataset.live);
    source.addEventListener("content", (event) => {
      // What a keyboard is in must not vanish under it.
      const focused = part.contains(document.activeElement) ? mark(document.activeElement) : null;
      part.innerHTML = JSON.parse(event.data);
      if (focused) part.querySelector(focused)?.focus({ preventScroll: true });
      hear();
    });
    source.addEventListener("alive", hear);
    source.addEventListener("error", () => {
      clearTimeout(silence);
      // An answer other than 200 ends the source for good; else the browser connects again by itself.
      if (source.readyState === EventSource.CLOSED) renew();
      else silence = setTimeout(renew, GRACE_MS);
    });
  }
  // Why there is nothing to hear, and a new try unless only signing in again helps.
  async function renew() {
    source.close(); clearTimeout(silence); clearTimeout(again);
    doubt();
    let status = 0;
    try { status = (await fetch("/api/me", { cache: "no-store", signal: AbortSignal.timeout(AGAIN_MS) })).status; } catch { /* the page's host is away */ }
    if (status === 401) {
      const link = document.createElement("a");
      link.href = `/login?next=${encodeURIComponent(location.pathname + location.search)}`;
      link.textContent = "Sign in again";
      doubt(link);
    } else again = setTimeout(connect, AGAIN_MS);
  }
  window.addEventListener("pagehide", () => { source.close(); clearTimeout(silence); clearTimeout(again); });
  window.addEventListener("pageshow", (event) => { if (event.persisted) renew(); });
  silence = setTimeout(renew, SILENT_MS);
  connect();
}
for (const part of document.querySelectorAll("[data-live]")) follow(part);
