"use strict";
// Curves over epochs as SVG: one chart per quantity, all over the same epochs, zoomed together.

// Pixels; the width is that of the page's column.
const SIZE = { width: 600, height: 220, left: 62, right: 14, top: 8, bottom: 26 };
// Okabe and Ito's colours, in which `vpf_jax.figures` draws, too; black is left to the text.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const DASHES = ["", "6 3", "2 2", "8 2 2 2"];
const charts = JSON.parse(document.getElementById("data").textContent);
const names = [...new Set(charts.flatMap((chart) => chart.curves.map((curve) => curve.name)))];
const hidden = new Set();
const epochs = charts.flatMap((chart) => chart.curves.flatMap((curve) => [curve.x[0], curve.x.at(-1)])).filter(Number.isFinite);
const whole = [Math.min(...epochs), Math.max(...epochs)];
if (whole[0] === whole[1]) { whole[0] -= 0.5; whole[1] += 0.5; }
let range = whole;

const svg = (name, attributes, parent, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
};
const colour = (name) => COLOURS[names.indexOf(name) % COLOURS.length];
const dash = (name) => DASHES[Math.floor(names.indexOf(name) / COLOURS.length) % DASHES.length];
const told = (value) => String(Number(value.toPrecision(5)));

function key(name) {
  const made = svg("svg", { viewBox: "0 0 24 8", class: "key", "aria-hidden": true });
  svg("line", { x1: 0, x2: 24, y1: 4, y2: 4, stroke: colour(name), "stroke-width": 3, "stroke-dasharray": dash(name) }, made);
  return made;
}

// Round numbers between two others, about so many.
function ticks(low, high, number) {
  const rough = (high - low) / number;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) found.push(Number((n * step).toPrecision(12)));
  return found;
}

// A curve inside the range, with the points next to it on both sides.
function inside(curve) {
  const kept = curve.x.map((x, i) => i).filter((i) =>
    (curve.x[i + 1] ?? curve.x[i]) >= range[0] && (curve.x[i - 1] ?? curve.x[i]) <= range[1]);
  return kept.map((i) => [curve.x[i], curve.y[i]]);
}

class Chart {
  constructor(chart, number) {
    this.curves = chart.curves;
    this.figure = document.createElement("figure");
    this.caption = document.createElement("figcaption");
    this.name = document.createElement("b");
    this.name.textContent = chart.name;
    this.values = document.createElement("output");
    this.caption.append(this.name, " ", this.values);
    this.svg = svg("svg", { role: "img", "aria-label": `${chart.name} over epochs` });
    this.clip = `clip${number}`;
    this.figure.append(this.caption, this.svg);
    this.svg.addEventListener("pointerdown", (event) => this.begin(event));
    this.svg.addEventListener("pointermove", (event) => this.move(event));
    this.svg.addEventListener("pointerup", (event) => this.end(event));
    this.svg.addEventListener("pointercancel", () => this.forget());
    this.svg.addEventListener("pointerleave", () => { if (this.from === undefined) this.forget(); });
    this.svg.addEventListener("dblclick", () => zoom(whole));
  }

  draw() {
    const shown = this.curves.filter((curve) => !hidden.has(curve.name)).map((curve) => ({ ...curve, points: inside(curve) }));
    const values = shown.flatMap((curve) => curve.points.map((point) => point[1]));
    let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
    const room = 0.05 * (high - low) || 0.05 * Math.abs(high) || 0.5;
    low -= room; high += room;
    const { width, height, left, right, top, bottom } = SIZE;
    this.x = (value) => left + (value - range[0]) / (range[1] - range[0]) * (width - left - right);
    const y = (value) => height - bottom - (value - low) / (high - low) * (height - top - bottom);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren();
    const clip = svg("clipPath", { id: this.clip }, this.svg);
    svg("rect", { x: left, y: top, width: width - left - right, height: height - top - bottom }, clip);
    for (const value of ticks(low, high, 4)) {
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }, this.svg);
      svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, this.svg, told(value));
    }
    for (const value of ticks(range[0], range[1], SIZE.width / 80).filter(Number.isInteger)) {
      svg("line", { class: "grid", x1: this.x(value), x2: this.x(value), y1: top, y2: height - bottom }, this.svg);
      svg("text", { x: this.x(value), y: height - 8, "text-anchor": "middle" }, this.svg, told(value));
    }
    const lines = svg("g", { "clip-path": `url(#${this.clip})` }, this.svg);
    for (const curve of shown) {
      const points = curve.points.map((point) => `${this.x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`);
      svg("polyline", { points: points.join(" "), stroke: colour(curve.name), "stroke-dasharray": dash(curve.name) }, lines);
      if (points.length < 40) for (const point of points) {
        const [cx, cy] = point.split(",");
        svg("circle", { cx, cy, r: 2.5, fill: colour(curve.name) }, lines);
      }
    }
    this.selected = svg("rect", { class: "selected", y: top, height: height - top - bottom, width: 0 }, this.svg);
    this.ruler = svg("line", { class: "ruler", y1: top, y2: height - bottom, visibility: "hidden" }, this.svg);
    this.shown = shown;
    this.forget();
  }

  epoch(event) {
    const box = this.svg.getBoundingClientRect();
    const part = ((event.clientX - box.left) / box.width * SIZE.width - SIZE.left) / (SIZE.width - SIZE.left - SIZE.right);
    return range[0] + Math.min(1, Math.max(0, part)) * (range[1] - range[0]);
  }

  begin(event) {
    if (event.button) return;
    this.from = this.epoch(event);
    this.svg.setPointerCapture(event.pointerId);
  }

  move(event) {
    const at = this.epoch(event);
    this.say(at);
    if (this.from === undefined) return;
    const ends = [this.from, at].map(this.x).sort((a, b) => a - b);
    this.selected.setAttribute("x", ends[0]);
    this.selected.setAttribute("width", ends[1] - ends[0]);
  }

  end(event) {
    const [from, to] = [this.from, this.epoch(event)].sort((a, b) => a - b);
    const dragged = this.from !== undefined && to - from > 0.02 * (range[1] - range[0]);
    this.forget();
    if (dragged) zoom([from, to]);
  }

  forget() {
    this.from = undefined;
    this.selected.setAttribute("width", 0);
    this.ruler.setAttribute("visibility", "hidden");
    const last = this.shown.filter((curve) => curve.x.length);
    this.values.replaceChildren(...last.map((curve) => this.value(curve, curve.y.at(-1))));
  }

  // The values at the measured epochs nearest to one.
  say(epoch) {
    const found = this.shown.filter((curve) => curve.points.length).map((curve) =>
      [curve, curve.points.reduce((best, point) => Math.abs(point[0] - epoch) < Math.abs(best[0] - epoch) ? point : best)]);
    if (!found.length) return;
    const at = found[0][1][0];
    this.ruler.setAttribute("visibility", "visible");
    this.ruler.setAttribute("x1", this.x(at));
    this.ruler.setAttribute("x2", this.x(at));
    this.values.replaceChildren(`epoch ${told(at)}: `, ...found.map(([curve, point]) => this.value(curve, point[1])));
  }

  // Of several curves with the look of its line; the legend has the name.
  value(curve, number) {
    const made = document.createElement("span");
    if (names.length > 1) { made.append(key(curve.name)); made.title = curve.name; }
    made.append(told(number));
    return made;
  }
}

const drawn = charts.map((chart, number) => new Chart(chart, number));

function zoom(to) {
  range = to;
  const zoomed = range !== whole;
  document.body.toggleAttribute("data-zoomed", zoomed);
  document.getElementById("whole").disabled = !zoomed;
  SIZE.width = drawn[0].figure.clientWidth;
  for (const chart of drawn) chart.draw();
}

function legend() {
  const place = document.getElementById("legend");
  if (names.length < 2) return;
  for (const name of names) {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(name); else hidden.add(name);
      for (const chart of drawn) chart.draw();
    });
    label.append(box, key(name), name);
    place.append(label);
  }
}

if (drawn.length) {
  document.getElementById("charts").append(...drawn.map((chart) => chart.figure));
  document.getElementById("whole").addEventListener("click", () => zoom(whole));
  legend();
  zoom(whole);
  addEventListener("resize", () => zoom(range));
}
if (document.body.hasAttribute("data-goes-on")) {
  setInterval(() => { if (!document.body.hasAttribute("data-zoomed")) location.reload(); }, 20000);
}
