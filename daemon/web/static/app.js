// Live parts: the server sends a fragment whenever it changes. Without scripts the page still works.
"use strict";
for (const part of document.querySelectorAll("[data-live]")) {
  const source = new EventSource(part.dataset.live);
  source.addEventListener("content", (event) => {
    // What a keyboard is in must not vanish under it.
    const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    part.innerHTML = JSON.parse(event.data);
    if (focused !== null) part.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  });
  window.addEventListener("pagehide", () => source.close());
}
