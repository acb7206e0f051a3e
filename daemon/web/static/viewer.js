// Slices of one series with heat map and outlines. Everything around the present slice is loaded ahead.
"use strict";
(async () => {
  const root = document.getElementById("viewer"), base = root.dataset.base;
  const at = (id) => document.getElementById(id);
  const stage = at("stage"), canvas = at("picture"), context = canvas.getContext("2d");
  const known = await asked(`${base}/view.json`, (answer) => answer.json());
  if (known.reason) { say(`The series is not shown: ${known.reason}`, known.status); at("loading").hidden = true; at("readout").textContent = "not shown"; return; }
  const view = known.value;
  const count = view.frames, ratio = view.spacing_mm ? view.spacing_mm[0] / view.spacing_mm[1] : 1;
  let current = Math.min(Math.max(Number(root.dataset.first), 0), count - 1), drawn = -1;

  // Pictures: ImageBitmaps decoded ahead, so that a step only draws. At most `kept` are held.
  // Failures: why a slice, or its heat map, is not there; those that do not last are tried again.
  const kept = 400, again_ms = 5000, pictures = new Map(), maps = new Map(), failures = new Map(), waiting = new Set();
  const ramp = new Uint8ClampedArray(256 * 3);
  [[13,8,51],[89,18,110],[173,46,97],[237,105,38],[252,191,51],[255,255,191]].forEach((c, i, all) => {
    if (i === all.length - 1) return;
    const d = all[i + 1];
    for (let v = Math.round(i * 51); v <= Math.round((i + 1) * 51); v++)
      for (let k = 0; k < 3; k++) ramp[v * 3 + k] = c[k] + (d[k] - c[k]) * (v - i * 51) / 51;
  });

  // A value, or the reason why there is none and whether that lasts.
  async function asked(address, read) {
    let answer;
    try {
      answer = await fetch(address);
      if (answer.ok) return { value: await read(answer) };
    } catch { return { reason: answer ? "the answer is damaged" : "the server does not answer", status: 0, lasting: false }; }
    const { detail } = await answer.json().catch(() => ({}));
    const reason = answer.status === 401 ? "you are signed out" : detail || `the server answers ${answer.status}`;
    return { reason, status: answer.status, lasting: [404, 409, 410, 422].includes(answer.status) };
  }
  const bitmap = (address) => asked(address, async (answer) => createImageBitmap(await answer.blob(), { colorSpaceConversion: "none" }));
  function say(text, status) {
    at("failed").textContent = text; at("failed").hidden = !text;
    at("sign-in").hidden = status !== 401;
  }
  function grey(image) {
    const flat = new OffscreenCanvas(image.width, image.height), pen = flat.getContext("2d", { willReadFrequently: true });
    pen.drawImage(image, 0, 0);
    const rgba = pen.getImageData(0, 0, image.width, image.height).data, out = new Uint8Array(rgba.length / 4);
    for (let i = 0; i < out.length; i++) out[i] = rgba[i * 4];
    return { width: image.width, height: image.height, values: out };
  }
  async function load(frame) {
    if (frame < 0 || frame >= count || settled(frame) || waiting.has(frame)) return;
    waiting.add(frame);
    try {
      const [picture, map] = await Promise.all([
        bitmap(`${base}/${frame}.jpg`),
        view.scores[frame] === null ? { value: null } : bitmap(`${base}/${frame}.png`),
      ]);
      pictures.get(frame)?.close(); pictures.delete(frame); maps.delete(frame); failures.delete(frame);
      if (picture.value) { pictures.set(frame, picture.value); maps.set(frame, map.value ? grey(map.value) : null); }
      const failure = picture.reason ? picture : map.reason ? map : null;
      if (failure) failures.set(frame, failure);
      if (failure?.status === 401) round++;  // every other one would be refused, too
      root.dataset.loaded = pictures.size;
      if (pictures.size > kept) {
        const far = [...pictures.keys()].sort((a, b) => Math.abs(b - current) - Math.abs(a - current))[0];
        pictures.get(far).close(); pictures.delete(far); maps.delete(far);
      }
    } finally { waiting.delete(frame); }
    if (frame === current) draw();
  }
  // Nearest first, a few at a time; a jump starts anew from where the reader is.
  let round = 0;
  const settled = (frame) => failures.has(frame) ? failures.get(frame).lasting : pictures.has(frame);
  async function ahead() {
    const mine = ++round, order = [];
    for (let step = 0; step < count && order.length < kept; step++)
      for (const frame of step ? [current + step, current - step] : [current])
        if (frame >= 0 && frame < count && !settled(frame)) order.push(frame);
    const worker = async () => { while (order.length && mine === round) await load(order.shift()); };
    await Promise.all(Array.from({ length: 4 }, worker));
    if (mine === round && [...failures.values()].some((failure) => !failure.lasting)) setTimeout(() => { if (mine === round) ahead(); }, again_ms);
  }

  const heat = document.createElement("canvas"), heatPen = heat.getContext("2d");
  function heatOf(map, from, opacity) {
    heat.width = map.width; heat.height = map.height;
    const image = heatPen.createImageData(map.width, map.height), data = image.data;
    const alpha = new Uint8Array(256), soft = 20;
    for (let v = 0; v < 256; v++) alpha[v] = Math.round(255 * opacity * Math.min(1, Math.max(0, (v - from + soft) / soft)));
    for (let i = 0, v; i < map.values.length; i++) {
      v = map.values[i];
      data[i * 4] = ramp[v * 3]; data[i * 4 + 1] = ramp[v * 3 + 1]; data[i * 4 + 2] = ramp[v * 3 + 2]; data[i * 4 + 3] = alpha[v];
    }
    heatPen.putImageData(image, 0, 0);
    return heat;
  }
  function fit() {
    const scale = Math.min(stage.clientWidth / view.columns, stage.clientHeight / (view.rows * ratio)) * Math.min(devicePixelRatio || 1, 2);
    const width = Math.max(1, Math.round(view.columns * scale)), height = Math.max(1, Math.round(view.rows * ratio * scale));
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  }
  function draw() {
    fit();
    const picture = pictures.get(current), map = maps.get(current), failure = failures.get(current);
    at("loading").hidden = Boolean(picture || failure);
    say(failure ? `${picture ? "The heat map" : "This slice"} is not shown: ${failure.reason}` : "", failure?.status);
    if (picture || failure) { context.fillStyle = "#000"; context.fillRect(0, 0, canvas.width, canvas.height); drawn = current; root.dataset.drawn = current; }
    if (picture) {
      context.drawImage(picture, 0, 0, canvas.width, canvas.height);
      const opacity = at("opacity").value / 100;
      if (map && opacity > 0) context.drawImage(heatOf(map, at("threshold").value * 2.55, opacity), 0, 0, canvas.width, canvas.height);
      if (at("outlines").checked) outline();
    }
    words(); profile();
  }
  function outline() {
    const sx = canvas.width / view.columns, sy = canvas.height / view.rows;
    context.lineWidth = Math.max(1.5, canvas.width / 350);
    context.font = `600 ${Math.round(canvas.width / 34)}px system-ui, sans-serif`;
    for (const finding of view.findings) {
      const loops = drawing.loops(finding, current);
      context.strokeStyle = context.fillStyle = drawing.colour(finding);
      for (const loop of loops) {
        context.beginPath();
        loop.forEach(([x, y], i) => i ? context.lineTo(x * sx, y * sy) : context.moveTo(x * sx, y * sy));
        context.stroke();
      }
      if (loops.length) {
        const right = Math.max(...loops[0].map((p) => p[0])), top = Math.min(...loops[0].map((p) => p[1]));
        context.fillText(String(finding.number), right * sx + 5, Math.max(top * sy, canvas.width / 30));
      }
    }
  }
  function words() {
    const score = view.scores[current], lost = failures.has(current) ? ` · not shown: ${failures.get(current).reason}` : "";
    at("readout").textContent = `slice ${current + 1} of ${count} · ${score === null ? "not scored" : "score " + score.toFixed(2)}${lost}`;
    at("slice").value = current + 1;
    at("opacity-value").textContent = `${at("opacity").value} %`;
    at("threshold-value").textContent = (at("threshold").value / 100).toFixed(2);
  }
  // Scores of all slices: where to look.
  const strip = at("profile"), stripPen = strip.getContext("2d");
  function profile() {
    const width = strip.width = Math.max(1, strip.clientWidth * (devicePixelRatio || 1)), height = strip.height = 56 * (devicePixelRatio || 1);
    const style = getComputedStyle(document.documentElement), step = width / count;
    const found = new Set(view.findings.flatMap((f) => Object.keys(f.outlines).map(Number)));
    view.scores.forEach((score, i) => {
      if (score === null) return;
      stripPen.fillStyle = found.has(i) ? "#e0852a" : style.getPropertyValue("--muted");
      stripPen.globalAlpha = i === current ? 1 : .55;
      stripPen.fillRect(i * step, height - 2 - score * (height - 4), Math.max(step - 1, 1), Math.max(2, score * (height - 4)));
    });
    stripPen.globalAlpha = 1; stripPen.fillStyle = style.getPropertyValue("--accent");
    stripPen.fillRect(current * step, 0, Math.max(step - 1, 2), 4 * (devicePixelRatio || 1));
  }
  function go(frame) {
    frame = Math.min(Math.max(frame, 0), count - 1);
    if (frame === current && drawn === current) return;
    current = frame; draw();
    if (!settled(current)) load(current);
    ahead();
  }
  function nextFinding(back) {
    const places = view.findings.map((f) => f.largest).sort((a, b) => a - b);
    const next = back ? places.filter((p) => p < current).pop() ?? places[places.length - 1] : places.find((p) => p > current) ?? places[0];
    if (next !== undefined) go(next);
  }

  let wheel = 0;
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    wheel += event.deltaMode ? event.deltaY * 40 : event.deltaY;
    const steps = Math.trunc(wheel / 40);
    if (steps) { wheel -= steps * 40; go(current + steps); }
  }, { passive: false });
  let touch = null;
  const drawing = startDrawing(root, view, { draw: () => draw(), go: (frame) => go(frame), frame: () => current });
  // Screen → pixel of the slice, its first corner being (0, 0).
  function pixel(event) {
    const box = canvas.getBoundingClientRect(), scale = Math.min(box.width / canvas.width, box.height / canvas.height);
    const x = (event.clientX - box.left - (box.width - canvas.width * scale) / 2) / (canvas.width * scale) * view.columns;
    const y = (event.clientY - box.top - (box.height - canvas.height * scale) / 2) / (canvas.height * scale) * view.rows;
    return [Math.min(Math.max(x, 0), view.columns), Math.min(Math.max(y, 0), view.rows)];
  }
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    if (drawing.on) { if (pictures.has(current)) drawing.down(pixel(event)); }
    else touch = { y: event.clientY, frame: current };
  });
  stage.addEventListener("pointermove", (event) => {
    if (drawing.on) drawing.move(pixel(event));
    if (!touch) return;
    const pixels = Math.max(4, Math.min(16, stage.clientHeight / count));
    go(touch.frame + Math.round((event.clientY - touch.y) / pixels));
  });
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => { touch = null; if (drawing.on) drawing.up(); });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches?.("input, select, textarea")) return;
    const deeds = {
      ArrowUp: () => go(current - 1), ArrowDown: () => go(current + 1), ArrowLeft: () => go(current - 1), ArrowRight: () => go(current + 1),
      PageUp: () => go(current - 10), PageDown: () => go(current + 10), Home: () => go(0), End: () => go(count - 1),
      n: () => nextFinding(false), N: () => nextFinding(true),
      h: () => { at("opacity").value = Number(at("opacity").value) ? 0 : 55; draw(); },
      o: () => { at("outlines").checked = !at("outlines").checked; draw(); },
    };
    if (deeds[event.key]) { event.preventDefault(); deeds[event.key](); }
  });
  at("slice").addEventListener("input", () => go(at("slice").value - 1));
  for (const id of ["opacity", "threshold", "outlines"]) at(id).addEventListener("input", draw);
  strip.addEventListener("pointerdown", (event) => go(Math.floor((event.offsetX / strip.clientWidth) * count)));
  for (const button of document.querySelectorAll("[data-frame]")) button.addEventListener("click", () => { go(Number(button.dataset.frame)); });
  new ResizeObserver(draw).observe(stage);
  draw(); ahead();
})();
