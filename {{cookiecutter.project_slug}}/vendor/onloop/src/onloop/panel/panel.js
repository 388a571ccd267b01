"use strict";

const LIMIT = 200;
const [filter, pause, clear, state, plot, tbody, empty] = ["filter", "pause", "clear", "state", "plot", "rows", "empty"].map((id) => document.getElementById(id));
// The rows, newest first, and the requests that arrived while the panel was paused.
let shown = [];
let held = [];
let source;

// Never sets HTML, because clients choose paths and request ids.
function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  set(made, attributes);
  return made;
}

function set(made, attributes) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
}

function ms(seconds) {
  return seconds === null ? "–" : `${(seconds * 1000).toFixed(1)} ms`;
}

function count(number, one, many) {
  return `${number} ${number === 1 ? one : many}`;
}

function show(request) {
  const row = element("tr");
  const hops = request.hops.reduce((sum, [times]) => sum + times, 0);
  const label = request.route === null ? request.path : `/${request.route}`;
  const button = element("button", `${request.method} ${label}`, { type: "button", "aria-expanded": "false" });
  const first = element("td");
  const ended = new Date(request.ended * 1000);
  first.append(button, element("span", `${ended.toLocaleTimeString()} ${request.path}`, { class: "path" }));
  row.append(first);
  for (const [name, text, style] of [
    ["Status", request.status ?? "–", request.status >= 500 ? "number failed" : "number"],
    ["Duration", ms(request.duration), "number"],
    ["First byte", ms(request.first_byte), "number"],
    ["Database", request.queries ? `${ms(request.database)}, ${count(request.queries, "query", "queries")}` : "–", "number"],
    ["Thread hops", hops, "number"],
    ["Outcome", request.outcome, request.outcome],
    ["Request id", request.request_id || "–", "id"],
  ]) {
    row.append(element("td", text, { class: style, "data-label": name }));
  }
  row.addEventListener("click", () => toggle(request, row, button));
  tbody.prepend(row);
  return { ...request, row, text: `${label} ${request.path}`.toLowerCase() };
}

async function toggle(request, row, button) {
  const open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  if (open) {
    row.nextElementSibling.remove();
    return;
  }
  const details = element("tr", "", { class: "details" });
  const cell = element("td", "", { colspan: "8" });
  const hops = request.hops.map(([times, what, where]) => `thread hop${times > 1 ? ` × ${times}` : ""}: ${what} at ${where}`);
  const lines = element("pre", [...hops, "…"].join("\n"));
  cell.append(lines);
  details.append(cell);
  row.after(details);
  let text = "The server no longer has its log lines.";
  try {
    const response = await fetch(`${request.number}/log`);
    if (response.ok) text = (await response.text()) || "No log lines.";
  } catch {
    // The server cannot be reached.
  }
  lines.textContent = [...hops, text].join("\n");
}

function remove({ row }) {
  if (row.nextElementSibling?.matches(".details")) row.nextElementSibling.remove();
  row.remove();
}

function update() {
  shown.splice(LIMIT).forEach(remove);
  const wanted = filter.value.trim().toLowerCase();
  const visible = shown.filter(({ row, text }) => {
    row.hidden = !text.includes(wanted);
    if (row.nextElementSibling?.matches(".details")) row.nextElementSibling.hidden = row.hidden;
    return !row.hidden;
  });
  empty.hidden = shown.length > 0;
  pause.textContent = pause.ariaPressed === "true" ? `Resume (${held.length})` : "Pause";
  draw(visible);
}

function drawn(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  set(made, attributes);
  made.textContent = text;
  plot.append(made);
  return made;
}

// From 0.1 ms at the bottom to 100 s at the top, each power of ten as high as the next.
function height(seconds) {
  const power = Math.log10(Math.min(Math.max(seconds, 0.0001), 100));
  return 152 - ((power + 4) / 6) * 144;
}

function draw(requests) {
  plot.replaceChildren();
  const width = plot.clientWidth;
  set(plot, { viewBox: `0 0 ${width} 160` });
  for (const [seconds, label] of [[0.001, "1 ms"], [0.01, "10 ms"], [0.1, "100 ms"], [1, "1 s"], [10, "10 s"]]) {
    const y = height(seconds);
    drawn("line", { x1: 0, x2: width, y1: y, y2: y });
    drawn("text", { x: 4, y: y - 3 }, label);
  }
  const ends = requests.map(({ ended }) => ended);
  const [least, most] = [Math.min(...ends), Math.max(...ends)];
  requests.forEach((request, index) => {
    const x = 60 + ((ends[index] - least) / (most - least || 1)) * (width - 70);
    drawn("circle", { class: request.outcome, cx: x, cy: height(request.duration), r: request.outcome === "completed" ? 3 : 5 });
  });
}

let drawing = 0;
function later() {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(update);
}

function connect(after) {
  source = new EventSource(`events?after=${after}`);
  source.onopen = () => { state.textContent = "Connected"; };
  source.onerror = () => {
    state.textContent = "Waiting for the server";
    // A response that is not a stream, such as an error page, closes the source for good.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000, newest());
  };
  source.onmessage = ({ data }) => {
    const request = JSON.parse(data);
    if (pause.ariaPressed === "true") held = [...held, request].slice(-LIMIT);
    else shown.unshift(show(request));
    later();
  };
}

function newest() {
  return held.at(-1)?.number ?? shown[0]?.number ?? Number(sessionStorage.getItem("cleared"));
}

pause.addEventListener("click", () => {
  pause.ariaPressed = String(pause.ariaPressed !== "true");
  if (pause.ariaPressed === "false") {
    for (const request of held) shown.unshift(show(request));
    held = [];
  }
  update();
});
clear.addEventListener("click", () => {
  sessionStorage.setItem("cleared", newest());
  shown.forEach(remove);
  [shown, held] = [[], []];
  update();
});
filter.addEventListener("input", update);
addEventListener("resize", later);
update();
connect(newest());
