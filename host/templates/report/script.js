// The values under the pointer, in all charts at once. Without this script the charts show the last values.
const charts = [...document.querySelectorAll("svg.chart")].map((svg) => {
  const plot = JSON.parse(svg.dataset.plot);
  const values = [...svg.closest("figure").querySelectorAll(".legend b")];
  return { svg, plot, values, last: values.map((value) => value.textContent), cross: svg.querySelector(".cross") };
});
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
}
function show(x) {
  for (const { plot, values, cross } of charts) {
    const [first, last] = plot.domain, [left, right] = plot.span;
    const at = left + ((x - first) / (last - first || 1)) * (right - left);
    cross.setAttribute("x1", at);
    cross.setAttribute("x2", at);
    cross.removeAttribute("hidden");
    plot.curves.forEach((curve, index) => {
      if (curve.x.length && values[index]) values[index].textContent = curve.y[nearest(curve.x, x)] ?? "–";
    });
  }
}
function reset() {
  for (const { values, last, cross } of charts) {
    cross.setAttribute("hidden", "");
    values.forEach((value, index) => (value.textContent = last[index]));
  }
}
for (const { svg, plot } of charts) {
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), [left, right] = plot.span, [first, last] = plot.domain;
    const inside = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    show(first + Math.min(1, Math.max(0, (inside - left) / (right - left))) * (last - first));
  });
  svg.addEventListener("pointerleave", reset);
}
