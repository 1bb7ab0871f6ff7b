// A point cloud in WebGL that can be turned and zoomed.

const VERTEX = `
attribute vec3 position; attribute vec3 color; varying vec3 shade;
uniform vec2 turn; uniform float distance_, aspect, focal, size;
void main() {
  float cx = cos(turn.x), sx = sin(turn.x), cy = cos(turn.y), sy = sin(turn.y);
  vec3 p = position;
  p = vec3(cx * p.x + sx * p.z, p.y, cx * p.z - sx * p.x);
  p = vec3(p.x, cy * p.y - sy * p.z, cy * p.z + sy * p.y);
  float z = p.z + distance_;
  gl_Position = vec4(focal * p.x / aspect, -focal * p.y, z * 0.999 - 0.01, z);
  gl_PointSize = clamp(size * (position.z + 1.0) / z, 1.0, 12.0); // far points are farther apart
  shade = color;
}`;
const FRAGMENT = `
precision mediump float; varying vec3 shade;
void main() { gl_FragColor = vec4(shade, 1.0); }`;
const MOST = 400000; // points

export class Cloud {
  constructor(canvas) {
    this.canvas = canvas;
    this.gl = canvas.getContext("webgl", { preserveDrawingBuffer: true });
    this.works = Boolean(this.gl);
    if (!this.works) return;
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    gl.enable(gl.DEPTH_TEST);
    this.program = program;
    this.points = gl.createBuffer();
    this.colors = gl.createBuffer();
    this.count = 0;
    this.listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  // Returns the number of points. Coordinates are divided by the median depth.
  load(values, near, photo, width, height, facts) {
    const step = Math.max(1, Math.ceil(Math.sqrt((width * height) / MOST)));
    const [fx, fy, cx, cy] = facts.intrinsics || [width, width, width / 2, height / 2];
    const depth = (i) => {
      if (facts.kind === "depth") return values[i];
      if (facts.unit === "1/m") return values[i] > 0 ? 1 / values[i] : NaN;
      return 1 / (near[i] + (1 - near[i]) / 10); // as DepthResult.to_depth
    };
    const kept = [];
    for (let y = 0; y < height; y += step)
      for (let x = 0; x < width; x += step) {
        const z = depth(y * width + x);
        if (Number.isFinite(z) && z > 0) kept.push([x, y, z]);
      }
    const sorted = Float32Array.from(kept, (p) => p[2]).sort();
    const middle = sorted.length ? sorted[sorted.length >> 1] : 1;
    const points = new Float32Array(3 * kept.length), colors = new Float32Array(3 * kept.length);
    kept.forEach(([x, y, z], i) => {
      const d = z / middle;
      points.set([((x + 0.5 - cx) / fx) * d, ((y + 0.5 - cy) / fy) * d, d - 1], 3 * i);
      const at = 4 * (y * width + x);
      colors.set([photo[at] / 255, photo[at + 1] / 255, photo[at + 2] / 255], 3 * i);
    });
    const gl = this.gl;
    for (const [buffer, data, name] of [[this.points, points, "position"], [this.colors, colors, "color"]]) {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
      const place = gl.getAttribLocation(this.program, name);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 0, 0);
    }
    this.count = kept.length;
    this.fit = (aspect) => 2 * fx * Math.min(1 / height, aspect / width); // all of the photo
    this.pixel = (step * 1.6) / fx; // size of a point at the distance 1
    this.turn = [0, 0];
    this.distance = 1.15;
    this.draw();
    return kept.length;
  }

  draw() {
    if (!this.works || !this.count) return;
    const gl = this.gl, scale = devicePixelRatio || 1;
    this.canvas.width = Math.max(1, this.canvas.clientWidth * scale);
    this.canvas.height = Math.max(1, this.canvas.clientHeight * scale);
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(0.06, 0.08, 0.1, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const set = (name, ...values) => gl[`uniform${values.length}f`](gl.getUniformLocation(this.program, name), ...values);
    const aspect = this.canvas.width / this.canvas.height;
    const focal = this.fit(aspect);
    set("turn", ...this.turn);
    set("distance_", this.distance);
    set("aspect", aspect);
    set("focal", focal);
    set("size", (this.pixel * focal * this.canvas.height) / 2);
    gl.drawArrays(gl.POINTS, 0, this.count);
  }

  listen() {
    const canvas = this.canvas;
    const rotate = (x, y) => {
      this.turn[0] += x;
      this.turn[1] = Math.max(-1.5, Math.min(1.5, this.turn[1] + y));
      this.draw();
    };
    const zoom = (factor) => {
      this.distance = Math.max(0.2, Math.min(10, this.distance * factor));
      this.draw();
    };
    const pointers = new Map();
    canvas.onpointerdown = (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
    };
    canvas.onpointerup = canvas.onpointercancel = (event) => pointers.delete(event.pointerId);
    canvas.onpointermove = (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const others = [...pointers].filter(([id]) => id !== event.pointerId);
      if (others.length) { // two fingers
        const [ox, oy] = others[0][1];
        zoom(Math.hypot(before[0] - ox, before[1] - oy) / Math.hypot(event.clientX - ox, event.clientY - oy));
      } else rotate((event.clientX - before[0]) / 250, (event.clientY - before[1]) / 250);
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
    };
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(Math.exp(event.deltaY / 800));
    }, { passive: false });
    canvas.onkeydown = (event) => {
      const turns = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
      if (turns[event.key]) rotate(...turns[event.key]);
      else if (event.key === "+" || event.key === "=") zoom(0.9);
      else if (event.key === "-") zoom(1.1);
      else return;
      event.preventDefault();
    };
  }
}
