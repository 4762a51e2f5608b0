"use strict";
(() => {
  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };

  // Two layers of a scene over each other, with a slider between them.
  const slider = (scene) => {
    const layers = [...scene.querySelectorAll(".layers figure")];
    const name = (layer) => layer.querySelector("figcaption").textContent;
    const left = make("img", { class: "left" }), right = make("img", { class: "right" });
    const range = make("input", { type: "range", min: 0, max: 100, value: 50, step: 0.5 });
    const pair = make("div", { class: "pair" }, left, right, range);
    const choose = (word, image, first) => {
      const select = make("select", {}, ...layers.map((layer, at) => make("option", { value: at }, name(layer))));
      const show = () => {
        const shown = layers[select.value].querySelector("img");
        for (const key of ["src", "alt", "width", "height"]) image.setAttribute(key, shown.getAttribute(key));
        range.setAttribute("aria-label", scene.getAttribute("aria-label") + ": share of the left picture");
      };
      select.value = first;
      select.addEventListener("change", show);
      show();
      return make("label", {}, make("span", { class: "soft" }, word + " "), select);
    };
    const sides = make("div", { class: "sides" },
      choose("left", left, scene.dataset.left), choose("right", right, scene.dataset.right));
    range.addEventListener("input", () => pair.style.setProperty("--at", range.value + "%"));
    scene.append(pair, sides);
  };

  // The values of all curves of a chart under the pointer.
  const readable = (chart) => {
    const svg = chart.querySelector("svg[data-x]");
    if (!svg) return;
    const scale = (text) => text.split(" ").map(Number);
    const [x0, x1, px0, px1] = scale(svg.dataset.x), [y0, y1, py0, py1] = scale(svg.dataset.y);
    const value = (py) => {
      const share = (py - py0) / (py1 - py0);
      return svg.dataset.log ? y0 * Math.pow(y1 / y0, share) : y0 + share * (y1 - y0);
    };
    const short = (number) => Number(number.toPrecision(3)).toString();
    const lines = [...svg.querySelectorAll("path.line")].map((path) => ({
      name: path.dataset.name,
      points: path.getAttribute("d").slice(1).split("L").map((point) => point.split(" ").map(Number)),
    }));
    const cursor = document.createElementNS(svg.namespaceURI, "line");
    cursor.setAttribute("class", "cursor");
    const text = make("p", { class: "read" });
    chart.append(text);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const at = Math.min(Math.max((event.clientX - box.left) * 560 / box.width, px0), px1);
      for (const [key, place] of [["x1", at], ["x2", at], ["y1", py1], ["y2", py0]]) cursor.setAttribute(key, place);
      svg.append(cursor);
      const nearest = (points) => points.reduce((best, point) => Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best);
      const step = Math.round(x0 + (at - px0) / (px1 - px0) * (x1 - x0));
      text.textContent = "at " + step + ": " + lines.map((line) => line.name + " " + short(value(nearest(line.points)[1]))).join(", ");
    });
    svg.addEventListener("pointerleave", () => { cursor.remove(); text.textContent = ""; });
  };

  document.querySelectorAll(".scene").forEach(slider);
  document.querySelectorAll(".chart").forEach(readable);
  document.documentElement.setAttribute("data-script", "ready");
})();
