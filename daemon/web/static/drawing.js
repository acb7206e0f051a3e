// Drawing a finding anew: one closed line per stroke; the outlines that are not redrawn stay.
"use strict";
function startDrawing(root, view, hooks) {
  const at = (id) => document.getElementById(id), box = at("drawing");
  let finding = null, loops = null, stroke = null;
  const drawing = {
    get on() { return finding !== null; },
    // What the viewer shows of a finding: what is drawn now, else what was drawn before, else what was found.
    loops(one, frame) {
      if (finding && one.tracking_uid === finding.tracking_uid) return (loops[frame] || []).concat(stroke ? [stroke] : []);
      return (view.corrections[one.tracking_uid] || one.outlines)[frame] || [];
    },
    colour(one) { return finding === one || view.corrections[one.tracking_uid] ? "#ffd24a" : "#40e0ff"; },
    down(point) { stroke = [point]; },
    move(point) {
      const last = stroke?.[stroke.length - 1];
      if (last && Math.hypot(point[0] - last[0], point[1] - last[1]) > .5) { stroke.push(point); hooks.draw(); }
    },
    up() {
      if (stroke && stroke.length > 2) { if (!loops.fresh.has(hooks.frame())) loops[hooks.frame()] = []; loops.fresh.add(hooks.frame()); loops[hooks.frame()].push(stroke); }
      stroke = null; hooks.draw();
    },
  };
  function begin(uid) {
    finding = view.findings.find((f) => f.tracking_uid === uid);
    loops = structuredClone(view.corrections[uid] || finding.outlines);
    Object.defineProperty(loops, "fresh", { value: new Set(), enumerable: false });
    at("drawing-what").textContent = `Correcting finding ${finding.number}.`;
    at("drawing-error").textContent = "";
    box.hidden = false; box.scrollIntoView({ block: "nearest" });
    root.dataset.drawing = uid; hooks.go(finding.largest); hooks.draw();
  }
  function end() { finding = loops = stroke = null; box.hidden = true; delete root.dataset.drawing; hooks.draw(); }
  async function save() {
    const correction = Object.fromEntries(Object.entries(loops).filter(([, all]) => all.length));
    const answer = await fetch(`/api/studies/${root.dataset.study}/verdicts`, {
      method: "POST", headers: { "content-type": "application/json", "x-csrf-token": root.dataset.token },
      body: JSON.stringify({ revision: Number(root.dataset.revision), group_key: root.dataset.key, tracking_uid: finding.tracking_uid, verdict: "correct", correction }),
    });
    if (answer.ok) location.assign(`${root.dataset.base}/view?frame=${hooks.frame()}`);
    else at("drawing-error").textContent = (await answer.json()).detail;
  }
  if (box) {
    for (const button of document.querySelectorAll("[data-correct]")) button.addEventListener("click", () => begin(button.dataset.correct));
    at("drawing-save").addEventListener("click", save);
    at("drawing-cancel").addEventListener("click", end);
    at("drawing-clear").addEventListener("click", () => { loops[hooks.frame()] = []; loops.fresh.add(hooks.frame()); hooks.draw(); });
    document.addEventListener("keydown", (event) => { if (event.key === "Escape" && finding) end(); });
  }
  return drawing;
}
