"use strict";
// A page is whole without this: it adds sorting, what charts tell where they are pointed at, and
// zooming along time. Charts of one group zoom together.
const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "status");
tip.hidden = true;
document.body.append(tip);

function tell(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 6))}px`;
  tip.style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18}px`;
}

function tellOf(mark) {
  const box = mark.getBoundingClientRect();
  tell(mark.dataset.t, box.left + box.width / 2, box.top + box.height / 2);
}

document.addEventListener("pointermove", (event) => {
  const mark = event.target.closest?.("[data-t]");
  if (mark) tell(mark.dataset.t, event.clientX, event.clientY);
  else tip.hidden = true;
});

for (const chart of document.querySelectorAll(".chart")) {
  let place = -1;
  chart.addEventListener("blur", () => { tip.hidden = true; place = -1; });
  chart.addEventListener("keydown", (event) => {
    const sheet = chart.querySelector("svg.sheet");
    const marks = chart.querySelectorAll("[data-t]");
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (step && marks.length && !event.shiftKey) {
      place = (place + step + marks.length) % marks.length;
      tellOf(marks[place]);
    } else if (sheet.dataset.zoom && (step || "+-0".includes(event.key))) {
      const [low, high] = shown(sheet);
      const width = high - low;
      const middle = (low + high) / 2;
      if (event.key === "0") zoom(sheet, 0, 1);
      else if (step) zoom(sheet, low + step * width / 4, high + step * width / 4);
      else {
        const half = event.key === "+" ? width / 4 : width;
        zoom(sheet, middle - half, middle + half);
      }
    } else return;
    event.preventDefault();
  });
}

// -- zoom: the shown part of an axis as two shares of the whole

function whole(sheet) {
  const plot = sheet.querySelector("svg.plot");
  return ["x", "y", "width", "height"].map((name) => plot[name].baseVal.value);
}

function shown(sheet) {
  const [left, , width] = whole(sheet);
  const box = sheet.querySelector("svg.plot").viewBox.baseVal;
  return [(box.x - left) / width, (box.x + box.width - left) / width];
}

function zoom(from, low, high) {
  const width = Math.min(1, Math.max(high - low, 1e-4));
  const start = Math.min(1 - width, Math.max(0, low));
  for (const sheet of document.querySelectorAll("svg.sheet[data-zoom]")) {
    if (sheet.dataset.zoom === from.dataset.zoom) show(sheet, start, start + width);
  }
}

function show(sheet, low, high) {
  const [left, upper, width, height] = whole(sheet);
  sheet.querySelector("svg.plot").setAttribute(
    "viewBox", `${left + low * width} ${upper} ${(high - low) * width} ${height}`);
  const at = (x) => left + (((x - left) / width) - low) / (high - low) * width;
  for (const word of sheet.querySelectorAll("text.in")) {
    const a = Math.max(left, at(Number(word.dataset.a)));
    const b = Math.min(left + width, at(Number(word.dataset.b)));
    word.setAttribute("x", (a + b) / 2);
    word.setAttribute("visibility", b - a > word.textContent.length * 6.2 + 4 ? "visible" : "hidden");
  }
  ticks(sheet, low, high);
}

function ticks(sheet, low, high) {
  const [left, upper, width, height] = whole(sheet);
  const first = Number(sheet.dataset.low);
  const span = Number(sheet.dataset.high) - first;
  const [from, to] = [first + low * span, first + high * span];
  if (!sheet.own) {
    // The ticks that the page was written with stand where the axis begins; they make room.
    sheet.own = [...sheet.querySelectorAll(":scope > text")].filter(
      (word) => Number(word.getAttribute("y")) === upper + height + 17);
  }
  for (const word of sheet.own) word.remove();
  const rough = (to - from) / 8;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((m) => m * power >= rough * 0.999) * power;
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  sheet.own = [];
  for (let n = Math.ceil(from / step - 1e-9); n * step <= to + 1e-9 * span; n += 1) {
    const word = document.createElementNS("http://www.w3.org/2000/svg", "text");
    word.setAttribute("class", "f-muted");
    word.setAttribute("text-anchor", "middle");
    word.setAttribute("x", left + (n * step - from) / (to - from) * width);
    word.setAttribute("y", upper + height + 17);
    word.textContent = (n * step).toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
    sheet.append(word);
    sheet.own.push(word);
  }
}

for (const sheet of document.querySelectorAll("svg.sheet[data-zoom]")) {
  const figure = sheet.closest("figure");
  const bar = document.createElement("div");
  bar.className = "zooms";
  for (const [text, name, change] of [
    ["+", "Zoom in", (low, high) => [low + (high - low) / 4, high - (high - low) / 4]],
    ["\u2212", "Zoom out", (low, high) => [low - (high - low) / 2, high + (high - low) / 2]],
    ["all", "Show all", () => [0, 1]],
  ]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.setAttribute("aria-label", `${name}: ${figure.querySelector("h3")?.textContent ?? "chart"}`);
    button.addEventListener("click", () => zoom(sheet, ...change(...shown(sheet))));
    bar.append(button);
  }
  figure.querySelector(".chart").before(bar);
  // Dragging takes the part of the axis that it passes over; a double click shows all.
  let start = null;
  const share = (event) => {
    const box = sheet.querySelector("svg.plot").getBoundingClientRect();
    const [left, , width] = whole(sheet);
    const scale = sheet.getBoundingClientRect().width / sheet.viewBox.baseVal.width;
    const x = (event.clientX - sheet.getBoundingClientRect().left) / scale;
    const [low, high] = shown(sheet);
    return box && low + Math.min(1, Math.max(0, (x - left) / width)) * (high - low);
  };
  sheet.addEventListener("pointerdown", (event) => { start = share(event); });
  addEventListener("pointerup", (event) => {
    if (start === null) return;
    const end = share(event);
    const [low, high] = shown(sheet);
    if (Math.abs(end - start) > 0.01 * (high - low)) zoom(sheet, Math.min(start, end), Math.max(start, end));
    start = null;
  });
  sheet.addEventListener("dblclick", () => zoom(sheet, 0, 1));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => {
    const numeric = heading.classList.contains("n");
    const down = heading.getAttribute("aria-sort") ? heading.getAttribute("aria-sort") === "ascending" : numeric;
    const value = (row) => numeric ? Number(row.cells[column].dataset.v ?? NaN) : row.cells[column].textContent;
    const order = (a, b) => numeric ? (value(a) || 0) - (value(b) || 0) : value(a).localeCompare(value(b));
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...[...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)));
  }));
}
