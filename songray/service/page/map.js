// The map: points in WebGL 2, and marks (selection, lines to neighbours, lasso) in a 2D canvas above them.

const VERTEX = `#version 300 es
in vec2 position; in vec4 color;
uniform vec2 scale, offset; uniform float size;
out vec4 shade;
void main() {
  gl_Position = color.a == 0.0 ? vec4(2.0) : vec4(position * scale + offset, 0.0, 1.0);
  gl_PointSize = size; shade = color;
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec4 shade; out vec4 pixel;
void main() {
  vec2 centred = gl_PointCoord - 0.5;
  pixel = vec4(shade.rgb, dot(centred, centred) > 0.25 ? 0.0 : shade.a);
}`;
// Distinct on white and on black: 20 hues and two greys, for tracks of rarer values and without a value.
const PALETTE = ["#4477cc", "#dd7722", "#339955", "#cc3344", "#8866cc", "#a0663d", "#d0559f", "#7f8c1f",
  "#1f9fb0", "#c79a00", "#5b8def", "#ee9966", "#66bb77", "#e0697a", "#a58be0", "#b98b66", "#e28cc4", "#a9b04a",
  "#5cc2cf", "#d9bd4a"];
const OTHER = "#8a8f98", UNKNOWN = "#b3b7bd";
const RAMP = [[59, 76, 192], [124, 133, 220], [152, 160, 170], [226, 140, 72], [196, 30, 40]];  // least to largest
const GRID = 128, REACH = 12;  // cells a side; pixels within which a point is picked
const FILLED = 0.92, TOP = 48;  // share of the canvas that the whole map fills; pixels that the controls cover
const STEPS = 65535, CROWD = 20_000;

const rgb = text => [1, 3, 5].map(start => parseInt(text.slice(start, start + 2), 16));

export const colorOf = (value, number) => value === "" ? UNKNOWN : value === "…" ? OTHER : PALETTE[number % PALETTE.length];

function ramp(share) {
  const place = Math.min(1, Math.max(0, share)) * (RAMP.length - 1), low = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[low].map((part, i) => Math.round(part + (RAMP[low + 1][i] - part) * (place - low)));
}
export const rampGradient = `linear-gradient(to right, ${RAMP.map(color => `rgb(${color})`).join(", ")})`;

export class PointMap {
  // `onHover(number, x, y)`, `onPick(number)`, `onLasso(numbers)`, `onView(box)` are called by what a person does.
  constructor(canvas, marks, handlers) {
    Object.assign(this, { canvas, marks, handlers, data: null, hidden: new Set(), selected: null, neighbours: [] });
    this.view = { x: 0.5, y: 0.5, zoom: 1 };  // the centre, in 0…1 of the extent; 1 shows all
    this.gl = canvas.getContext("webgl2", { antialias: false, alpha: false });
    if (this.gl) this.prepare();
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("webglcontextlost", event => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => { this.prepare(); this.upload(); this.draw(); });
    this.listen();
  }

  prepare() {
    const gl = this.gl, program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source); gl.compileShader(shader); gl.attachShader(program, shader);
    }
    gl.linkProgram(program); gl.useProgram(program);
    gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    this.places = Object.fromEntries(["scale", "offset", "size"].map(name => [name, gl.getUniformLocation(program, name)]));
    this.positionBuffer = gl.createBuffer(); this.colorBuffer = gl.createBuffer();
    for (const [name, buffer, size, type] of [["position", this.positionBuffer, 2, gl.UNSIGNED_SHORT], ["color", this.colorBuffer, 4, gl.UNSIGNED_BYTE]]) {
      const place = gl.getAttribLocation(program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.enableVertexAttribArray(place); gl.vertexAttribPointer(place, size, type, true, 0, 0);
    }
  }

  // `data` is what api.points returns. The first one defines the extent that the view refers to.
  show(data) {
    const whole = this.extent ?? data.extent;
    this.data = data; this.extent = whole;
    const [left, bottom, right, top] = data.extent, width = whole[2] - whole[0] || 1, height = whole[3] - whole[1] || 1;
    this.positions = new Float32Array(2 * data.count);
    for (let i = 0; i < data.count; i++) {
      this.positions[2 * i] = (left + data.xs[i] / STEPS * (right - left) - whole[0]) / width;
      this.positions[2 * i + 1] = (bottom + data.ys[i] / STEPS * (top - bottom) - whole[1]) / height;
    }
    this.paint(); this.index(); this.upload(); this.draw();
  }

  paint() {
    const { color, colors, count } = this.data;
    this.shades = new Uint8Array(4 * count);
    const table = color.kind === "category" ? color.values.map((value, number) => rgb(colorOf(value, number))) : null;
    const span = (color.largest - color.least) || 1, unknown = rgb(UNKNOWN);
    for (let i = 0; i < count; i++) {
      const value = colors[i];
      const shade = table ? table[value] : Number.isNaN(value) ? unknown : ramp((value - color.least) / span);
      this.shades.set(shade, 4 * i);
      this.shades[4 * i + 3] = table && this.hidden.has(color.values[value]) ? 0 : 235;
    }
  }

  setHidden(values) { this.hidden = values; if (this.data) { this.paint(); this.upload(); this.draw(); } }

  // Cells of the plane with the numbers of their points, by counting.
  index() {
    const { count } = this.data, cell = i => this.cell(this.positions[2 * i], this.positions[2 * i + 1]);
    this.starts = new Uint32Array(GRID * GRID + 1);
    for (let i = 0; i < count; i++) this.starts[cell(i) + 1]++;
    for (let i = 0; i < GRID * GRID; i++) this.starts[i + 1] += this.starts[i];
    const next = this.starts.slice();
    this.members = new Uint32Array(count);
    for (let i = 0; i < count; i++) this.members[next[cell(i)]++] = i;
  }

  cell(x, y) {
    const bounded = value => Math.min(GRID - 1, Math.max(0, Math.floor(value * GRID)));
    return bounded(y) * GRID + bounded(x);
  }

  upload() {
    const gl = this.gl;
    if (!gl || !this.data) return;
    const shorts = new Uint16Array(this.positions.length);
    for (let i = 0; i < shorts.length; i++) shorts[i] = Math.min(1, Math.max(0, this.positions[i])) * STEPS;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.positionBuffer); gl.bufferData(gl.ARRAY_BUFFER, shorts, gl.STATIC_DRAW);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.colorBuffer); gl.bufferData(gl.ARRAY_BUFFER, this.shades, gl.STATIC_DRAW);
  }

  // Pixels of a unit of the plane, at the view's zoom.
  get unit() { return [this.canvas.clientWidth * FILLED * this.view.zoom, (this.canvas.clientHeight - TOP) * FILLED * this.view.zoom]; }
  toPixels(x, y) {
    const [width, height] = this.unit;
    return [this.canvas.clientWidth / 2 + (x - this.view.x) * width, (this.canvas.clientHeight + TOP) / 2 - (y - this.view.y) * height];
  }
  toPlane(pixelX, pixelY) {
    const [width, height] = this.unit;
    return [this.view.x + (pixelX - this.canvas.clientWidth / 2) / width, this.view.y - (pixelY - (this.canvas.clientHeight + TOP) / 2) / height];
  }

  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => { this.frame = 0; this.render(); });
  }

  render() {
    const ratio = devicePixelRatio || 1, width = Math.round(this.canvas.clientWidth * ratio), height = Math.round(this.canvas.clientHeight * ratio);
    for (const canvas of [this.canvas, this.marks]) if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const gl = this.gl;
    if (gl && this.data) {
      const background = getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g).map(part => part / 255);
      gl.viewport(0, 0, width, height); gl.clearColor(...background.slice(0, 3), 1); gl.clear(gl.COLOR_BUFFER_BIT);
      // Discs with soft colors; squares of few pixels where there are many, which software draws twice as fast.
      if (this.data.count > CROWD) gl.disable(gl.BLEND); else gl.enable(gl.BLEND);
      const covered = TOP / this.canvas.clientHeight, wide = 2 * FILLED * this.view.zoom, high = wide * (1 - covered);
      gl.uniform2f(this.places.scale, wide, high);
      gl.uniform2f(this.places.offset, -this.view.x * wide, -this.view.y * high - covered);
      const crowd = Math.min(1, Math.sqrt(4000 / Math.max(1, this.data.count)));
      gl.uniform1f(this.places.size, ratio * Math.min(14, (2 + 6 * crowd) * Math.sqrt(this.view.zoom)));
      gl.drawArrays(gl.POINTS, 0, this.data.count);
    }
    this.renderMarks(ratio);
  }

  renderMarks(ratio) {
    const context = this.marks.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.marks.width, this.marks.height);
    const accent = getComputedStyle(this.marks).color, text = getComputedStyle(this.canvas).color;
    const ring = ([x, y], radius, color) => { context.beginPath(); context.arc(x, y, radius, 0, 7); context.strokeStyle = color; context.lineWidth = 2; context.stroke(); };
    if (this.selected) {
      const centre = this.toPixels(...this.selected);
      context.strokeStyle = accent; context.globalAlpha = 0.55; context.lineWidth = 1.2;
      for (const neighbour of this.neighbours) {
        context.beginPath(); context.moveTo(...centre); context.lineTo(...this.toPixels(...neighbour)); context.stroke();
      }
      context.globalAlpha = 1;
      for (const neighbour of this.neighbours) ring(this.toPixels(...neighbour), 5, accent);
      ring(centre, 8, text);
    }
    if (this.hovered !== undefined) ring(this.toPixels(this.positions[2 * this.hovered], this.positions[2 * this.hovered + 1]), 7, text);
    if (this.lasso) {
      context.beginPath();
      for (const point of this.lasso) context.lineTo(...point);
      context.closePath(); context.strokeStyle = accent; context.setLineDash([5, 4]); context.stroke(); context.setLineDash([]);
    }
  }

  // Positions in the coordinates of the service; a route is a line through all of them.
  mark(selected, neighbours) {
    const place = ([x, y]) => [(x - this.extent[0]) / (this.extent[2] - this.extent[0] || 1), (y - this.extent[1]) / (this.extent[3] - this.extent[1] || 1)];
    this.selected = selected && this.extent ? place(selected) : null;
    this.neighbours = this.extent ? neighbours.map(place) : [];
    this.draw();
  }

  pick(pixelX, pixelY) {
    if (!this.data?.count) return undefined;
    const [x, y] = this.toPlane(pixelX, pixelY), [width, height] = this.unit;
    const reach = [REACH / width, REACH / height], clamp = value => Math.min(GRID - 1, Math.max(0, Math.floor(value * GRID)));
    let best, least = REACH * REACH;
    for (let row = clamp(y - reach[1]); row <= clamp(y + reach[1]); row++)
      for (let column = clamp(x - reach[0]); column <= clamp(x + reach[0]); column++) {
        const cell = row * GRID + column;
        for (let place = this.starts[cell]; place < this.starts[cell + 1]; place++) {
          const i = this.members[place];
          if (!this.shades[4 * i + 3]) continue;
          const distance = ((this.positions[2 * i] - x) * width) ** 2 + ((this.positions[2 * i + 1] - y) * height) ** 2;
          if (distance < least) { least = distance; best = i; }
        }
      }
    return best;
  }

  inside(polygon) {
    const numbers = [];
    for (let i = 0; i < this.data.count; i++) {
      if (!this.shades[4 * i + 3]) continue;
      const [x, y] = this.toPixels(this.positions[2 * i], this.positions[2 * i + 1]);
      let within = false;
      for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a++) {
        const [ax, ay] = polygon[a], [bx, by] = polygon[b];
        if (ay > y !== by > y && x < (bx - ax) * (y - ay) / (by - ay) + ax) within = !within;
      }
      if (within) numbers.push(i);
    }
    return numbers;
  }

  zoomBy(factor, pixelX = this.canvas.clientWidth / 2, pixelY = (this.canvas.clientHeight + TOP) / 2) {
    const before = this.toPlane(pixelX, pixelY);
    this.view.zoom = Math.min(2000, Math.max(0.5, this.view.zoom * factor));
    const after = this.toPlane(pixelX, pixelY);
    this.view.x += before[0] - after[0]; this.view.y += before[1] - after[1];
    this.moved();
  }

  fit() { this.view = { x: 0.5, y: 0.5, zoom: 1 }; this.moved(); }

  moved() {
    this.draw();
    clearTimeout(this.settled);
    this.settled = setTimeout(() => {
      if (!this.extent) return;
      const [left, top] = this.toPlane(0, 0), [right, bottom] = this.toPlane(this.canvas.clientWidth, this.canvas.clientHeight);
      const [l, b, r, t] = this.extent, x = value => l + value * (r - l), y = value => b + value * (t - b);
      this.handlers.onView([x(left), y(bottom), x(right), y(top)]);
    }, 250);
  }

  listen() {
    const canvas = this.canvas, pointers = new Map();
    const at = event => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    let travelled = 0;
    canvas.addEventListener("pointerdown", event => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, at(event)); travelled = 0;
      if (event.shiftKey) this.lasso = [at(event)];
    });
    canvas.addEventListener("pointermove", event => {
      const [x, y] = at(event), before = pointers.get(event.pointerId);
      if (!before) {
        const number = this.pick(x, y);
        if (number !== this.hovered) { this.hovered = number; this.draw(); this.handlers.onHover(number, x, y); }
        return;
      }
      travelled += Math.hypot(x - before[0], y - before[1]);
      if (this.lasso) { this.lasso.push([x, y]); this.draw(); pointers.set(event.pointerId, [x, y]); return; }
      const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
      if (other) {  // two fingers
        const ratio = Math.hypot(x - other[0], y - other[1]) / (Math.hypot(before[0] - other[0], before[1] - other[1]) || 1);
        this.zoomBy(ratio, (x + other[0]) / 2, (y + other[1]) / 2);
      } else {
        const [width, height] = this.unit;
        this.view.x -= (x - before[0]) / width; this.view.y += (y - before[1]) / height;
        this.moved();
      }
      pointers.set(event.pointerId, [x, y]);
    });
    const end = event => {
      if (!pointers.delete(event.pointerId)) return;
      const polygon = this.lasso;
      this.lasso = null; this.draw();
      if (polygon?.length > 2) this.handlers.onLasso(this.inside(polygon));
      else if (event.type === "pointerup" && travelled < 5) {
        const number = this.pick(...at(event));
        if (number !== undefined) this.handlers.onPick(number);
      }
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("pointerleave", () => { this.hovered = undefined; this.draw(); this.handlers.onHover(undefined); });
    canvas.addEventListener("wheel", event => { event.preventDefault(); this.zoomBy(Math.exp(-event.deltaY * 0.0015), ...at(event)); }, { passive: false });
  }
}
