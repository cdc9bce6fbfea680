// The page of graphc's report: graph, node, source, memory and time, all from the JSON in the page.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const LIMIT = 160; // nodes that are drawn at once; a larger graph is drawn as blocks
const state = { level: data.levels[0], block: null, cy: null };

const escape = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" }[c]));
const number = (value) => Number(value).toLocaleString("en-US");
const option = (value, text) => `<option value="${escape(value)}">${escape(text)}</option>`;

for (const level of data.levels) {
  level.byName = new Map(level.nodes.map((node) => [node.name, node]));
  at("level").insertAdjacentHTML("beforeend", option(level.id, level.title));
}

// ---------------------------------------------------------------- the graph

const style = [
  { selector: "node", style: { label: "data(label)", shape: "round-rectangle", width: "data(width)", height: 26, "font-size": 11, "text-valign": "center", "background-color": "data(color)", color: "#1c2530", "border-width": 1, "border-color": "#868e96" } },
  { selector: "node.block", style: { "border-width": 2, "border-style": "double", height: 28, "font-weight": "bold" } },
  { selector: "node.outside", style: { opacity: 0.45 } },
  { selector: "node.lit", style: { "background-color": "#ffd8a8", "border-color": "#e8590c", "border-width": 3 } },
  { selector: "node.chosen", style: { "border-color": "#e8590c", "border-width": 4 } },
  { selector: "edge", style: { width: 1.2, "line-color": "#adb5bd", "target-arrow-color": "#adb5bd", "target-arrow-shape": "triangle", "curve-style": "bezier", "arrow-scale": 0.8 } },
];
const COLORS = { input: "#d0ebff", parameter: "#e5dbff", state: "#e5dbff", conv2d: "#d3f9d8", matmul: "#d3f9d8", kernel: "#fff3bf" };
const color = (node) => COLORS[node.op] || (/conv2d|matmul/.test(node.op) ? "#d3f9d8" : "#f1f3f5");
const width = (label) => 16 + 6.5 * label.length;

function elements(level, block) {
  const found = [];
  if (block === null && level.nodes.length > LIMIT) {
    const blocks = new Map();
    for (const node of level.nodes) blocks.set(node.block, (blocks.get(node.block) || 0) + 1);
    for (const [name, count] of blocks)
      found.push({ data: { id: "block:" + name, label: `${name || "other"} (${count})`, width: width(`${name || "other"} (${count})`), color: "#e7f5ff", block: name }, classes: "block" });
    const edges = new Set();
    for (const node of level.nodes)
      for (const input of node.inputs) {
        const from = level.byName.get(input).block;
        if (from !== node.block) edges.add(JSON.stringify([from, node.block]));
      }
    for (const edge of edges) {
      const [from, to] = JSON.parse(edge);
      found.push({ data: { source: "block:" + from, target: "block:" + to } });
    }
    return found;
  }
  const inside = level.nodes.filter((node) => block === null || node.block === block);
  const shown = new Set(inside.map((node) => node.name));
  const add = (node, classes) => found.push({ data: { id: node.name, label: node.label || node.name, width: width(node.label || node.name), color: color(node) }, classes });
  for (const node of inside) add(node, "");
  if (block !== null)
    for (const node of inside)
      for (const input of node.inputs)
        if (!shown.has(input)) { shown.add(input); add(level.byName.get(input), "outside"); }
  for (const node of inside)
    for (const input of new Set(node.inputs)) found.push({ data: { source: input, target: node.name } });
  return found;
}

function draw(level, block = null) {
  state.level = level;
  state.block = block;
  at("level").value = level.id;
  at("up").hidden = block === null;
  at("count").textContent = `${number(level.nodes.length)} nodes` + (block === null ? "" : `, block ${block || "other"}`);
  if (state.cy) state.cy.destroy();
  state.cy = cytoscape({ container: at("graph"), elements: elements(level, block), style, layout: { name: "dagre", nodeSep: 18, rankSep: 28, animate: false } });
  state.cy.on("tap", "node", (event) => {
    const tapped = event.target;
    if (tapped.hasClass("block")) draw(level, tapped.data("block"));
    else choose(tapped.id());
  });
  state.cy.on("mouseover", "node", (event) => {
    const node = level.byName.get(event.target.id());
    if (node && node.kernels && node.kernels.length) light(nodesOf(level.entry, node.kernels[0]));
  });
  state.cy.on("mouseout", "node", () => light([]));
}

function light(names) {
  if (!state.cy) return;
  state.cy.nodes().removeClass("lit");
  for (const name of names) state.cy.getElementById(name).addClass("lit");
}

function nodesOf(entry, kernel) {
  return state.level.nodes.filter((node) => state.level.entry === entry && node.kernels.includes(kernel)).map((node) => node.name);
}

function choose(name, show = true) {
  const level = state.level, node = level.byName.get(name);
  if (!node) return;
  if (!state.cy.getElementById(name).nonempty()) draw(level, node.block);
  const element = state.cy.getElementById(name);
  state.cy.nodes().removeClass("chosen");
  element.addClass("chosen");
  state.cy.animate({ center: { eles: element }, zoom: Math.max(1, state.cy.zoom()), duration: 150 });
  if (show) tab("node");
  const facts = [["op", escape(node.op)], ["type", `<code>${escape(node.type)}</code>`], ["line", escape(node.line)]];
  if (node.value) facts.push(["value", node.value]);
  for (const [what, formula] of node.derivatives || []) facts.push([escape(what), formula]);
  if (node.attributes) facts.push(["attributes", escape(node.attributes)]);
  const chips = (names) => names.map((n) => `<button class="chip" data-node="${escape(n)}">${escape(n)}</button>`).join("");
  facts.push(["reads", chips(node.inputs) || "nothing"]);
  facts.push(["read by", chips(level.nodes.filter((n) => n.inputs.includes(name)).map((n) => n.name)) || "nobody"]);
  const kernels = (node.kernels || []).map((k) => `<button class="chip" data-kernel="${k}" data-entry="${level.entry}">${k}: ${escape(data.kernels[level.entry][k].function)}</button>`);
  facts.push(["kernels", kernels.join("") || "none: read where it lies, or computed where it is read"]);
  at("node").innerHTML = `<h2>${escape(name)}</h2><dl>${facts.map(([k, v]) => `<dt>${k}</dt><dd>${v}</dd>`).join("")}</dl>`;
  if (node.kernels && node.kernels.length) source(level.entry, node.kernels[0]);
}

// ---------------------------------------------------------------- search

at("search").addEventListener("input", () => {
  const text = at("search").value.trim().toLowerCase();
  const found = text ? state.level.nodes.filter((n) => `${n.name} ${n.op} ${n.line}`.toLowerCase().includes(text)).slice(0, 60) : [];
  at("matches").hidden = !found.length;
  at("matches").innerHTML = found.map((n) => `<li><button data-node="${escape(n.name)}">${escape(n.name)}: ${escape(n.op)} ${escape(n.type)}</button></li>`).join("");
});
at("search").addEventListener("keydown", (event) => {
  const first = at("matches").querySelector("button");
  if (event.key === "Enter" && first) first.click();
  if (event.key === "Escape") at("matches").hidden = true;
});

// ---------------------------------------------------------------- source

for (const entry of Object.keys(data.kernels)) at("entry").insertAdjacentHTML("beforeend", option(entry, entry));
at("entry").addEventListener("change", () => source(at("entry").value, 0));
at("kernel").addEventListener("change", () => source(at("entry").value, Number(at("kernel").value)));

function source(entry, k) {
  const kernels = data.kernels[entry];
  if (at("kernel").dataset.entry !== entry) {
    at("kernel").dataset.entry = entry;
    at("kernel").innerHTML = kernels.map((kernel, n) => option(n, `${n}: ${kernel.function}${kernel.again ? " (again)" : ""}`)).join("");
  }
  at("entry").value = entry;
  at("kernel").value = String(k);
  const kernel = kernels[k];
  if (!kernel) return;
  const nodes = state.level.entry === entry ? nodesOf(entry, k) : [];
  at("kernel-facts").innerHTML = `<p>${number(kernel.flops)} FLOP, ${number(kernel.bytes)} bytes at batch ${data.batch}; ${escape(kernel.nodes.join(", "))}; ${escape(kernel.lines.join(", "))}</p>` +
    `<p>${nodes.map((n) => `<button class="chip" data-node="${escape(n)}">${escape(n)}</button>`).join("")}</p>`;
  at("kernel-facts").dataset.entry = entry;
  at("kernel-facts").dataset.kernel = String(k);
  at("code").innerHTML = hljs.highlight(data.texts[kernel.text], { language: "c" }).value;
}
at("source").addEventListener("mouseover", () => { const facts = at("kernel-facts").dataset; if (facts.entry) light(nodesOf(facts.entry, Number(facts.kernel))); });
at("source").addEventListener("mouseleave", () => light([]));

// ---------------------------------------------------------------- memory

for (const name of Object.keys(data.plans)) at("plan").insertAdjacentHTML("beforeend", option(name, name));
at("plan").addEventListener("change", memory);

function memory() {
  const plan = data.plans[at("plan").value];
  if (!plan) return;
  const steps = Math.max(1, ...plan.buffers.map((b) => b.upper)), arena = Math.max(1, plan.arena_bytes);
  const [W, H, L] = [1000, 520, 60], x = (s) => L + (s * (W - L)) / steps, y = (b) => H - (b * (H - 20)) / arena;
  const rects = plan.buffers.map((b) => {
    const fill = b.kept ? "var(--kept)" : b.scratch ? "var(--scratch)" : "var(--free)";
    const wide = x(b.upper) - x(b.lower), high = y(b.offset) - y(b.offset + b.bytes);
    const name = wide > 60 && high > 12 ? `<text x="${x(b.lower) + 3}" y="${y(b.offset) - high / 2 + 4}">${escape(b.name)}</text>` : "";
    return `<g><rect x="${x(b.lower)}" y="${y(b.offset + b.bytes)}" width="${wide}" height="${high}" fill="${fill}" fill-opacity=".55" stroke="#fff" stroke-width=".5"><title>${escape(b.name)}: ${number(b.bytes)} bytes at ${number(b.offset)}, steps ${b.lower} to ${b.upper - 1}${b.kept ? ", kept for the backward pass" : ""}</title></rect>${name}</g>`;
  });
  const bound = `<line x1="${L}" x2="${W}" y1="${y(plan.lower_bound_bytes)}" y2="${y(plan.lower_bound_bytes)}" stroke="var(--mark)" stroke-dasharray="6 4"/>`;
  const axis = [0, 0.25, 0.5, 0.75, 1].map((p) => `<text x="0" y="${y(p * arena) + 4}">${(p * arena / 2 ** 20).toFixed(arena > 4e6 ? 0 : 2)} MiB</text>`).join("");
  at("map").innerHTML = `<svg viewBox="0 0 ${W} ${H + 20}">${rects.join("")}${bound}${axis}<text x="${W / 2}" y="${H + 16}">kernel (time)</text></svg>`;
  const least = plan.least_bound_bytes === null ? "not known" : number(plan.least_bound_bytes);
  at("certificate").innerHTML = `<p>arena ${number(plan.arena_bytes)} bytes, lower bound ${number(plan.lower_bound_bytes)} (dashed), least bound over all orders ${least}, kept ${number(plan.kept_bytes)}; peak at step ${plan.peak_step}: ${escape(plan.alive_at_peak.slice(0, 8).join(", "))}. ` +
    `<span style="color:var(--kept)">kept</span>, <span style="color:var(--free)">passing</span>, <span style="color:var(--soft)">scratch</span></p>`;
  const live = new Array(steps).fill(0);
  for (const b of plan.buffers) for (let s = b.lower; s < b.upper; s++) live[s] += b.bytes;
  const points = live.map((v, s) => `${x(s)},${140 - (v * 120) / arena} ${x(s + 1)},${140 - (v * 120) / arena}`).join(" ");
  at("live").innerHTML = `<svg viewBox="0 0 ${W} 160"><polyline points="${points}" fill="none" stroke="var(--free)" stroke-width="1.5"/><text x="${L}" y="156">bytes alive at each step</text></svg>`;
}

// ---------------------------------------------------------------- time

function time() {
  if (!data.profiles.length) {
    at("time").innerHTML = '<p class="hint">Not measured. Compile with <code>profile=True</code> and give <code>gc.report</code> what <code>module.profile(...)</code> returns.</p>';
    return;
  }
  at("time").innerHTML = data.profiles.map((profile) => {
    const total = profile.kernels.reduce((sum, k) => sum + k.seconds, 0);
    const slow = [...profile.kernels].sort((a, b) => b.seconds - a.seconds).slice(0, 40), most = slow[0].seconds || 1;
    const bars = slow.map((k, n) => `<g><rect x="230" y="${n * 18 + 4}" width="${(560 * k.seconds) / most}" height="13" fill="var(--free)" fill-opacity=".6"/><text x="225" y="${n * 18 + 15}" text-anchor="end">${escape(k.kernel.slice(0, 36))}</text><text x="${236 + (560 * k.seconds) / most}" y="${n * 18 + 15}">${(1e6 * k.seconds).toFixed(1)} us, ${((100 * k.seconds) / total).toFixed(1)} %, ${k.gflops.toFixed(1)} GFLOP/s</text></g>`);
    const counted = profile.kernels.filter((k) => k.flops && k.bytes && k.seconds > 0);
    const [peak, band] = [profile.machine.fma_gflops, profile.machine.bandwidth_gb_s];
    const lx = (v) => 60 + (Math.log10(v) + 2) * 150, ly = (v) => 320 - (Math.log10(Math.max(v, 1e-2)) + 2) * 60;
    const ridge = peak / band;
    const roof = `<polyline points="${lx(0.01)},${ly(0.01 * band)} ${lx(ridge)},${ly(peak)} ${lx(1e4)},${ly(peak)}" fill="none" stroke="var(--ink)"/>`;
    const dots = counted.map((k) => `<circle cx="${lx(k.flops / k.bytes)}" cy="${ly(k.gflops)}" r="${3 + 20 * Math.sqrt(k.seconds / total)}" fill="var(--mark)" fill-opacity=".45"><title>${escape(k.kernel)}: ${k.gflops.toFixed(1)} GFLOP/s at ${(k.flops / k.bytes).toFixed(2)} FLOP/B</title></circle>`);
    const ticks = [0.01, 0.1, 1, 10, 100, 1000, 10000].map((v) => `<text x="${lx(v)}" y="338" text-anchor="middle">${v}</text>`).join("") + [0.1, 1, 10, 100, 1000].map((v) => `<text x="40" y="${ly(v) + 4}" text-anchor="end">${v}</text>`).join("");
    return `<h2>${escape(profile.entry)}, batch ${profile.batch}, ${profile.threads} threads: ${(1e3 * total).toFixed(3)} ms</h2><svg class="bars" viewBox="0 0 1000 ${slow.length * 18 + 8}">${bars.join("")}</svg>` +
      `<h3>Roofline: ${peak.toFixed(0)} GFLOP/s, ${band.toFixed(1)} GB/s</h3><svg class="roofline" viewBox="0 0 1000 345">${roof}${dots.join("")}${ticks}<text x="480" y="318">FLOP for each byte</text><text x="62" y="14">GFLOP/s</text></svg>`;
  }).join("");
}

// ---------------------------------------------------------------- the rest

function tab(name) {
  for (const button of document.querySelectorAll("nav button")) button.classList.toggle("on", button.dataset.tab === name);
  for (const panel of document.querySelectorAll(".tab")) panel.classList.toggle("on", panel.id === name);
  if (name === "memory" && !at("map").innerHTML) memory();
  if (name === "time" && !at("time").innerHTML) time();
}
for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => tab(button.dataset.tab));
at("level").addEventListener("change", () => draw(data.levels.find((level) => level.id === at("level").value)));
at("up").addEventListener("click", () => draw(state.level));
document.body.addEventListener("click", (event) => {
  const { node, kernel, entry } = event.target.dataset || {};
  if (node) { at("matches").hidden = true; choose(node); }
  if (kernel) { source(entry, Number(kernel)); tab("source"); }
});
document.body.addEventListener("mouseover", (event) => {
  const { node, kernel, entry } = event.target.dataset || {};
  if (node) light([node]);
  if (kernel && event.target.classList.contains("chip")) light(nodesOf(entry, Number(kernel)));
});

draw(data.levels[0]);
if (Object.keys(data.kernels).length) source(Object.keys(data.kernels)[0], 0);
document.body.dataset.ready = "yes";
