"use strict";
for (const chart of document.querySelectorAll(".chart")) {
  const {steps, values} = JSON.parse(chart.querySelector("script").textContent);
  const plot = chart.querySelector(".plot"), at = chart.querySelector(".at");
  const keys = chart.querySelectorAll("output[data-line]"), shown = chart.querySelector(".step"), first = +chart.dataset.first, last = +chart.dataset.last;
  const all = [...new Set(steps.flat())].sort((a, b) => a - b);
  const nearest = (list, step) => {
    let low = 0, high = list.length - 1;
    while (low < high) { const middle = (low + high) >> 1; if (list[middle] < step) low = middle + 1; else high = middle; }
    return low && step - list[low - 1] <= list[low] - step ? low - 1 : low;
  };
  let place = -1;
  const show = index => {
    place = Math.max(0, Math.min(all.length - 1, index));
    const step = all[place], x = last > first ? 100 * (step - first) / (last - first) : 0;
    at.setAttribute("x1", x + "%"); at.setAttribute("x2", x + "%"); at.style.visibility = "visible";
    chart.classList.add("pointed");
    shown.textContent = "step " + step.toLocaleString("en");
    for (const key of keys) {
      const line = key.dataset.line, near = nearest(steps[line], step), found = steps[line][near];
      key.textContent = values[line][near].toLocaleString("en", {maximumSignificantDigits: 4});
      key.title = "step " + found.toLocaleString("en");
    }
  };
  const hide = () => {
    place = -1;
    at.style.visibility = "hidden";
    chart.classList.remove("pointed");
    shown.textContent = "";
    for (const key of keys) key.textContent = "";
  };
  const point = event => {
    const box = plot.getBoundingClientRect();
    show(nearest(all, first + (last - first) * (event.clientX - box.left) / box.width));
  };
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", event => {
    const by = {ArrowLeft: -1, ArrowRight: 1, PageUp: 20, PageDown: -20}[event.key];
    if (by === undefined) return;
    event.preventDefault();
    show(place < 0 ? (by > 0 ? 0 : all.length - 1) : place + by);
  });
}
