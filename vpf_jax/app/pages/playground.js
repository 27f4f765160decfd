/* The page around the sampler: what is drawn, what is held, what is shown. */
"use strict";

const playground = (() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const element = (id) => document.getElementById(id);
  const [rows, columns] = content.shape;
  const pixels = rows * columns;
  const CELL = 12;
  /* Bright and dark as the picture's white and black, orange and blue for whoever sees colours in whichever way. */
  const ON = [255, 190, 80];
  const OFF = [0, 52, 92];
  /* In milliseconds: a frame takes no more, however many steps are asked for; and a picture to repair is seen so long as
     it was given. */
  const LONGEST = 200;
  const GIVEN = 700;
  const prior = content.prior && VPF.decode(content.prior);
  const sampler = new VPF.Sampler(content.machines, crypto.getRandomValues(new Uint32Array(1))[0]);
  const { low, high } = sampler.units[0];
  const deep = sampler.machines.length > 1;

  let running = false;
  let steps = 0;
  let cursor = { row: rows >> 1, column: columns >> 1 };
  /* The example under repair: its bits, what was given, and which pixels were corrupted. */
  let task = null;

  const number = (id) => Number(element(id).value);
  const isOn = (i) => sampler.states[0][i] === high;

  /* --- pictures --- */

  /* Draws the colours of cells row by row on a canvas of so many rows and columns. */
  function paint(canvas, height, width, colour) {
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      const [red, green, blue] = colour(i);
      image.data.set([red, green, blue, 255], 4 * i);
    }
    context.putImageData(image, 0, 0);
  }

  function grey(share) {
    const level = Math.round(255 * share);
    return [level, level, level];
  }

  /* Between 0 and 1: the probability of a unit's upper value when it was last drawn, or which value it has. */
  function shown(layer, i) {
    if (element("show").value === "means") return sampler.probabilities[layer][i];
    return sampler.states[layer][i] === sampler.units[layer].high ? 1 : 0;
  }

  const small = document.createElement("canvas");

  function drawVisible() {
    const canvas = element("visible");
    paint(small, rows, columns, (i) => (sampler.held[i] ? (isOn(i) ? ON : OFF) : grey(shown(0, i))));
    [canvas.width, canvas.height] = [columns * CELL, rows * CELL];
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    if (document.activeElement === canvas && canvas.matches(":focus-visible")) {
      const [x, y] = [cursor.column * CELL, cursor.row * CELL];
      context.lineWidth = 2;
      for (const [inset, colour] of [[1, "#000"], [3, "#fff"]]) {
        context.strokeStyle = colour;
        context.strokeRect(x + inset, y + inset, CELL - 2 * inset, CELL - 2 * inset);
      }
    }
  }

  const tiles = sampler.sizes.map((size) => {
    const width = Math.ceil(Math.sqrt(size));
    return { width, height: Math.ceil(size / width) };
  });

  function drawHidden() {
    for (let layer = 1; layer < sampler.sizes.length; layer++) {
      const { width, height } = tiles[layer];
      const size = sampler.sizes[layer];
      paint(element(`layer-${layer}`), height, width, (i) => (i < size ? grey(shown(layer, i)) : [90, 90, 90]));
    }
  }

  function draw() {
    drawVisible();
    drawHidden();
    const held = sampler.held.reduce((sum, one) => sum + one, 0);
    element("status").textContent = `${steps.toLocaleString("en")} ${steps === 1 ? "step" : "steps"}, ${held} of ${pixels} pixels held`;
    if (task) drawTask();
  }

  /* --- sampling --- */

  /* Another start, of pixels: what the pictures show had better be what the machine has. */
  function look() {
    sampler.probabilities[0] = sampler.states[0].map((value) => (value === high ? 1 : 0));
    draw();
  }

  function advance() {
    const end = performance.now() + LONGEST;
    for (let left = number("sweeps"); left > 0 && performance.now() < end; left--, steps++) {
      sampler.sweep(number("temperature"));
    }
    sampler.descend(number("temperature"));
    draw();
  }

  let last = 0;
  function frame(now) {
    if (!running) return;
    if (now - last >= 1000 / number("pace") - 2) {
      last = now;
      advance();
    }
    requestAnimationFrame(frame);
  }

  function dream(wanted) {
    if (wanted && !running) requestAnimationFrame(frame);
    running = wanted;
    element("dream").textContent = running ? "Pause" : "Dream";
  }

  function restart() {
    leaveTask();
    sampler.held.fill(0);
    sampler.start(prior, number("temperature"));
    steps = 0;
    draw();
  }

  function clear() {
    leaveTask();
    dream(false);
    sampler.held.fill(0);
    sampler.states[0].fill(low);
    sampler.climb(number("temperature"));
    steps = 0;
    look();
  }

  /* --- brushes --- */

  const BRUSHES = {
    draw: (i) => [high, 1, i],
    erase: (i) => [low, 1, i],
    hold: (i) => [sampler.states[0][i], 1, i],
    release: (i) => [sampler.states[0][i], 0, i],
  };

  /* Where the brush touches: the cells whose middle is within half its width of a point, the nearest one at least. */
  function touched(row, column) {
    const radius = number("width") / 2;
    const found = [];
    for (let r = Math.floor(row - radius); r <= row + radius; r++) {
      for (let c = Math.floor(column - radius); c <= column + radius; c++) {
        const inside = Math.hypot(r + 0.5 - row, c + 0.5 - column) <= radius;
        const nearest = r === Math.floor(row) && c === Math.floor(column);
        if ((inside || nearest) && r >= 0 && c >= 0 && r < rows && c < columns) found.push(r * columns + c);
      }
    }
    return found;
  }

  function brush(row, column) {
    const kind = BRUSHES[document.querySelector("[name=brush]:checked").value];
    for (const [value, held, i] of touched(row, column).map(kind)) {
      sampler.states[0][i] = value;
      sampler.probabilities[0][i] = value === high ? 1 : 0;
      sampler.held[i] = held;
    }
  }

  /* After a stroke the hidden layers of a stack start anew from the pixels: their chain would take long to follow. */
  function finishStroke() {
    if (deep && sampler.anyHeld) sampler.climb(number("temperature"));
    draw();
  }

  function place(event) {
    const box = element("visible").getBoundingClientRect();
    const scale = Math.min(box.width / columns, box.height / rows);
    const left = box.left + (box.width - scale * columns) / 2;
    const top = box.top + (box.height - scale * rows) / 2;
    return { row: (event.clientY - top) / scale, column: (event.clientX - left) / scale };
  }

  function listenToPointer(canvas) {
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      from = place(event);
      brush(from.row, from.column);
      draw();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!from) return;
      const to = place(event);
      const parts = Math.max(1, Math.ceil(2 * Math.hypot(to.row - from.row, to.column - from.column)));
      for (let k = 1; k <= parts; k++) {
        brush(from.row + ((to.row - from.row) * k) / parts, from.column + ((to.column - from.column) * k) / parts);
      }
      from = to;
      draw();
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, () => {
        if (from) finishStroke();
        from = null;
      });
    }
  }

  const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  function listenToKeys(canvas) {
    canvas.addEventListener("keydown", (event) => {
      const move = MOVES[event.key];
      if (move) {
        cursor.row = Math.min(rows - 1, Math.max(0, cursor.row + move[0]));
        cursor.column = Math.min(columns - 1, Math.max(0, cursor.column + move[1]));
        draw();
      } else if (event.key === "Enter" || event.key === " ") {
        brush(cursor.row + 0.5, cursor.column + 0.5);
        finishStroke();
      } else return;
      event.preventDefault();
    });
    for (const name of ["focus", "blur"]) canvas.addEventListener(name, draw);
  }

  /* --- repair --- */

  function bits(packed) {
    const bytes = atob(packed);
    return Uint8Array.from({ length: pixels }, (_, i) => (bytes.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1);
  }

  const HALVES = {
    top: (row) => row < rows / 2,
    bottom: (row) => row >= rows / 2,
    left: (row, column) => column < columns / 2,
    right: (row, column) => column >= columns / 2,
  };

  function repair(index) {
    const original = bits(content.examples[index].bits);
    const inside = HALVES[element("side").value];
    const mask = original.map((_, i) => (inside(Math.floor(i / columns), i % columns) ? 1 : 0));
    const given = original.map((bit, i) => (mask[i] && sampler.random.uniform() < 0.5 ? 1 : bit));
    given.forEach((bit, i) => {
      sampler.states[0][i] = bit ? high : low;
      sampler.held[i] = 1 - mask[i];
    });
    task = { index, original, mask, given };
    steps = 0;
    sampler.climb(number("temperature"));
    element("compared").hidden = false;
    paint(element("original"), rows, columns, (i) => grey(original[i]));
    paint(element("given"), rows, columns, (i) => grey(given[i]));
    press(index);
    look();
  }

  /* Sum over the corrupted pixels of the distance between a picture and the original. */
  function distance(picture) {
    return task.mask.reduce((sum, inside, i) => sum + inside * Math.abs(picture[i] - task.original[i]), 0);
  }

  function drawTask() {
    paint(element("repaired"), rows, columns, (i) => grey(shown(0, i)));
    const now = distance(Array.from(task.original, (_, i) => shown(0, i)));
    element("error").textContent =
      `Distance from the original, summed over the ${task.mask.reduce((a, b) => a + b, 0)} corrupted pixels: ` +
      `given ${distance(task.given).toFixed(0)}, now ${now.toFixed(0)}.`;
  }

  function leaveTask() {
    task = null;
    element("compared").hidden = true;
    press(-1);
  }

  function press(index) {
    [...element("examples").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
  }

  function buildExamples() {
    element("repair").hidden = !content.examples.length;
    content.examples.forEach((example, index) => {
      const button = document.createElement("button");
      const canvas = document.createElement("canvas");
      const picture = bits(example.bits);
      button.type = "button";
      button.setAttribute("aria-label", `Repair example ${index + 1}${example.label === null ? "" : `, of class ${example.label}`}`);
      paint(canvas, rows, columns, (i) => grey(picture[i]));
      button.append(canvas);
      button.addEventListener("click", () => {
        repair(index);
        last = performance.now() + GIVEN;
        dream(true);
      });
      element("examples").append(button);
    });
  }

  /* --- words --- */

  function buildLayers() {
    element("hidden").hidden = sampler.sizes.length === 1;
    for (let layer = sampler.sizes.length - 1; layer > 0; layer--) {
      const figure = document.createElement("figure");
      const canvas = document.createElement("canvas");
      const caption = document.createElement("figcaption");
      canvas.id = `layer-${layer}`;
      caption.textContent = `layer ${layer}: ${sampler.sizes[layer]} units`;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `The units of hidden ${caption.textContent}`);
      figure.append(canvas, caption);
      element("layers").append(figure);
    }
  }

  const LAWS = {
    directed:
      "The weights up and those down differ. In a directed machine units are drawn from their local fields as everywhere, " +
      "odd layers first, then even ones, but no energy and no closed form say what the distribution of such a chain is.",
    single:
      "One machine: a step is a Gibbs sweep, odd layers first, then even ones, and the units of a layer with weights " +
      "inside one after another. Left alone, the chain samples the machine's distribution; with pixels held, that of " +
      "all other units given the held pixels.",
    deep:
      "A stack of machines, sampled as a deep belief network: the top machine is a Boltzmann machine, and each machine " +
      "below says how its lower layer is drawn given its upper one. With nothing held, a step is a Gibbs sweep of the " +
      "top machine, and one pass down draws the picture. With pixels held, a step draws every hidden unit given all " +
      "other hidden units and the held pixels, and the free pixels last, so that the chain samples the network's " +
      "distribution given the held pixels. It is no pass up and down with the pixels put back, which has no such law. " +
      "After a stroke the hidden layers start anew from a pass up.",
  };

  function buildWords() {
    const kind = sampler.base ? "stack" : "machine";
    const data = content.dataset ? `, trained on ${content.dataset}` : "";
    element("told").textContent =
      `A ${kind} of ${sampler.sizes.join("-")} units${data}: watch it dream, draw, and see the rest completed.`;
    const directed = content.machines.some((machine) => machine.backward);
    const words = [
      ...(deep ? [LAWS.deep] : directed ? [] : [LAWS.single]),
      ...(directed ? [LAWS.directed] : []),
      "A temperature divides all weights and biases. A chain takes a while to forget where it started, the longer the " +
        "colder it is.",
      `The weights in this file are ${content.precision}; these are what is sampled. Nothing leaves this page.`,
      `Written by vpf_jax ${content.version}.`,
    ];
    for (const text of words) {
      const paragraph = document.createElement("p");
      paragraph.textContent = text;
      element("law").append(paragraph);
    }
  }

  function tell(input) {
    const output = document.querySelector(`output[for=${input.id}]`);
    output.textContent = input.id === "temperature" ? Number(input.value).toFixed(2) : input.value;
  }

  function listen() {
    const on = (id, action) => element(id).addEventListener("click", action);
    on("dream", () => dream(!running));
    on("step", () => {
      dream(false);
      advance();
    });
    on("restart", () => {
      restart();
      dream(true);
    });
    on("release", () => {
      leaveTask();
      sampler.held.fill(0);
      draw();
    });
    on("clear", clear);
    element("show").addEventListener("change", draw);
    for (const input of document.querySelectorAll("input[type=range]")) {
      tell(input);
      input.addEventListener("input", () => tell(input));
    }
    listenToPointer(element("visible"));
    listenToKeys(element("visible"));
  }

  element("visible").setAttribute("role", "application");
  element("visible").setAttribute("aria-label", `Picture of ${rows} by ${columns} pixels`);
  buildWords();
  buildLayers();
  buildExamples();
  listen();
  restart();
  dream(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  return { sampler, task: () => task };
})();
