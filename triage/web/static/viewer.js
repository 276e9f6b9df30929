// A radiograph on a canvas: window, zoom, pan, inversion, heat map, a mark.
//
// Without WebGL: thin clients and remote desktops have none that is worth the name, and one way
// is one way to test. Only the pixels of the screen are made, from the stored greys, out of the
// halved picture that is nearest to the size on the screen, so that nothing shimmers.

const KEPT = 3;
const pictures = new Map(); // SOP Instance UID to a promise of a picture

/** A picture, fetched once and kept as long as it is one of the last few. */
export function picture(uid) {
  const known = pictures.get(uid);
  if (known) pictures.delete(uid);
  const coming = known ?? fetched(uid);
  pictures.set(uid, coming);
  coming.catch(() => pictures.delete(uid));
  while (pictures.size > KEPT) pictures.delete(pictures.keys().next().value);
  return coming;
}

async function fetched(uid) {
  const response = await fetch(`/exams/${encodeURIComponent(uid)}/picture`);
  if (!response.ok) {
    const { problemOf, signIn } = await import("./api.js");
    if (response.status === 401) signIn();
    throw await problemOf(response);
  }
  const description = JSON.parse(response.headers.get("X-Picture"));
  const content = await response.arrayBuffer();
  const values = description.bytes === 2 ? new Uint16Array(content) : new Uint8Array(content);
  return { ...description, levels: halved({ columns: description.columns, rows: description.rows, values }) };
}

/** The picture, and it at half, a quarter, ... of its size: each pixel the mean of four. */
function halved(whole) {
  const levels = [whole];
  for (let last = whole; last.columns > 400 && last.rows > 400; ) {
    const columns = last.columns >> 1;
    const rows = last.rows >> 1;
    const values = new last.values.constructor(columns * rows);
    const from = last.values;
    for (let row = 0, at = 0; row < rows; row += 1) {
      let first = row * 2 * last.columns;
      let second = first + last.columns;
      for (let column = 0; column < columns; column += 1, at += 1, first += 2, second += 2) {
        values[at] = (from[first] + from[first + 1] + from[second] + from[second + 1] + 2) >> 2;
      }
    }
    last = { columns, rows, values };
    levels.push(last);
  }
  return levels;
}

export class Viewer {
  /** @param onChange what is told of window and zoom; @param onMark where the finding is, or null */
  constructor(canvas, onChange, onMark) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.onChange = onChange;
    this.onMark = onMark;
    this.picture = null;
    this.heat = null;
    this.mark = null;
    this.marking = false;
    this.inverted = false;
    this.table = new Uint32Array(65_536);
    new ResizeObserver(() => this.#resized()).observe(canvas);
    this.#pointers();
  }

  show(picture) {
    this.picture = picture;
    this.heat = null;
    this.mark = null;
    this.marking = false;
    this.inverted = false;
    this.reset();
  }

  clear() {
    this.picture = null;
    this.heat = null;
    this.#soon();
  }

  reset() {
    if (!this.picture) return;
    this.black = this.picture.black;
    this.white = this.picture.white;
    this.inverted = false;
    this.#fit();
    this.#soon();
  }

  invert() {
    this.inverted = !this.inverted;
    this.#soon();
  }

  setHeat(bitmap) {
    this.heat = bitmap;
    this.#soon();
  }

  setMark(mark) {
    this.mark = mark;
    this.#soon();
  }

  /** Let the next click, or the arrow keys and Enter, say where the finding is. */
  setMarking(marking) {
    this.marking = marking;
    if (marking && !this.mark && this.picture) {
      this.aim = { x: this.x / this.picture.columns, y: this.y / this.picture.rows };
    } else if (marking) this.aim = { ...this.mark };
    this.#soon();
  }

  /** Of the picture's default window's width: `level` up is brighter, `width` up is softer. */
  window(level, width) {
    if (!this.picture) return;
    const step = this.picture.white - this.picture.black;
    const middle = (this.black + this.white) / 2 - level * step;
    const half = Math.max(0.5, ((this.white - this.black) * 2 ** width) / 2);
    this.black = middle - half;
    this.white = middle + half;
    this.#soon();
  }

  pan(across, down) {
    this.x -= across / this.scale;
    this.y -= down / (this.scale * this.aspect);
    this.fitted = false;
    this.#soon();
  }

  /** Zoom and keep what is at a place of the canvas, in CSS pixels, where it is. */
  zoom(factor, at = { x: this.canvas.clientWidth / 2, y: this.canvas.clientHeight / 2 }) {
    if (!this.picture) return;
    const scale = Math.min(32, Math.max(this.#fitting() / 4, this.scale * factor));
    const [dx, dy] = [at.x - this.canvas.clientWidth / 2, at.y - this.canvas.clientHeight / 2];
    this.x += dx / this.scale - dx / scale;
    this.y += (dy / this.scale - dy / scale) / this.aspect;
    this.scale = scale;
    this.fitted = false;
    this.#soon();
  }

  /** Move the aim of the mark by CSS pixels. */
  moveAim(across, down) {
    this.aim.x = clamp(this.aim.x + across / this.scale / this.picture.columns);
    this.aim.y = clamp(this.aim.y + down / (this.scale * this.aspect) / this.picture.rows);
    this.#soon();
  }

  takeAim() {
    this.mark = { ...this.aim };
    this.setMarking(false);
    this.onMark(this.mark);
  }

  get aspect() {
    return this.picture.aspect;
  }

  #fitting() {
    const { columns, rows, aspect } = this.picture;
    const { clientWidth, clientHeight } = this.canvas;
    return Math.max(1e-3, Math.min(clientWidth / columns, clientHeight / (rows * aspect)));
  }

  #fit() {
    this.scale = this.#fitting();
    this.x = this.picture.columns / 2;
    this.y = this.picture.rows / 2;
    this.fitted = true;
  }

  #resized() {
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * ratio));
    if (this.picture && this.fitted) this.#fit();
    this.#draw(); // at once: a resized canvas is empty
  }

  #soon() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.#draw();
    });
  }

  #greys() {
    const slope = 255 / (this.white - this.black);
    const length = this.picture.bytes === 2 ? 65_536 : 256;
    for (let value = 0; value < length; value += 1) {
      let grey = (value - this.black) * slope;
      grey = grey < 0 ? 0 : grey > 255 ? 255 : Math.round(grey);
      if (this.inverted) grey = 255 - grey;
      this.table[value] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
    }
    return this.table;
  }

  #draw() {
    const { context, canvas, picture } = this;
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (!picture) return;
    const ratio = canvas.width / Math.max(1, canvas.clientWidth);
    const across = this.scale * ratio;
    const down = across * picture.aspect;
    const left = canvas.width / 2 - this.x * across;
    const top = canvas.height / 2 - this.y * down;
    const box = [
      Math.max(0, Math.ceil(left - 0.5)),
      Math.max(0, Math.ceil(top - 0.5)),
      Math.min(canvas.width, Math.floor(left + picture.columns * across + 0.5)),
      Math.min(canvas.height, Math.floor(top + picture.rows * down + 0.5)),
    ];
    if (box[2] > box[0] && box[3] > box[1]) {
      this.#sample(box, left, top, across, down);
      if (this.heat) {
        context.imageSmoothingQuality = "high";
        context.drawImage(this.heat, left, top, picture.columns * across, picture.rows * down);
      }
    }
    for (const [place, aiming] of [[this.mark, false], [this.marking ? this.aim : null, true]]) {
      if (place) this.#cross(left + place.x * picture.columns * across, top + place.y * picture.rows * down, ratio, aiming);
    }
    const { offset, scale } = picture;
    this.onChange({
      center: offset + (scale * (this.black + this.white)) / 2,
      width: Math.abs(scale) * (this.white - this.black),
      zoom: this.scale,
      inverted: this.inverted,
      marking: this.marking,
    });
  }

  /** The greys of a box of the canvas, each between its four neighbours in the picture. */
  #sample([x0, y0, x1, y1], left, top, across, down) {
    const levels = this.picture.levels;
    const wish = Math.floor(Math.log2(1 / Math.min(across, down)) + 1e-6);
    const { columns, rows, values } = levels[Math.max(0, Math.min(levels.length - 1, wish))];
    const [toColumn, toRow] = [columns / (this.picture.columns * across), rows / (this.picture.rows * down)];
    const width = x1 - x0;
    const image = this.context.createImageData(width, y1 - y0);
    const out = new Uint32Array(image.data.buffer);
    const table = this.#greys();
    const first = new Int32Array(width);
    const second = new Int32Array(width);
    const weight = new Float32Array(width);
    for (let x = 0; x < width; x += 1) {
      const at = Math.min(columns - 1, Math.max(0, (x + x0 + 0.5 - left) * toColumn - 0.5));
      first[x] = Math.floor(at);
      second[x] = Math.min(columns - 1, first[x] + 1);
      weight[x] = at - first[x];
    }
    for (let y = y0, target = 0; y < y1; y += 1) {
      const at = Math.min(rows - 1, Math.max(0, (y + 0.5 - top) * toRow - 0.5));
      const upper = Math.floor(at) * columns;
      const lower = Math.min(rows - 1, Math.floor(at) + 1) * columns;
      const share = at - Math.floor(at);
      for (let x = 0; x < width; x += 1, target += 1) {
        const one = first[x];
        const other = second[x];
        const part = weight[x];
        const a = values[upper + one] + part * (values[upper + other] - values[upper + one]);
        const b = values[lower + one] + part * (values[lower + other] - values[lower + one]);
        out[target] = table[(a + share * (b - a) + 0.5) | 0];
      }
    }
    this.context.putImageData(image, x0, y0);
  }

  #cross(x, y, ratio, aiming) {
    const { context } = this;
    const radius = 13 * ratio;
    for (const [colour, width] of [["#000", 4], [aiming ? "#7db4f5" : "#f0b75a", 1.75]]) {
      context.strokeStyle = colour;
      context.lineWidth = width * ratio;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        context.moveTo(x + dx * radius * 0.5, y + dy * radius * 0.5);
        context.lineTo(x + dx * radius * 1.6, y + dy * radius * 1.6);
      }
      context.stroke();
    }
  }

  #pointers() {
    const { canvas } = this;
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.picture) return;
      canvas.setPointerCapture(event.pointerId);
      from = { x: event.offsetX, y: event.offsetY, pans: event.button !== 0 || event.shiftKey, moved: false };
      if (event.button === 1) event.preventDefault(); // no scrolling by the wheel's button
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!from || !this.picture) {
        return;
      }
      const [across, down] = [event.offsetX - from.x, event.offsetY - from.y];
      if (!from.moved && Math.hypot(across, down) < 4) return;
      if (from.pans) this.pan(across, down);
      else if (!this.marking) this.window(-down / 400, across / 250);
      Object.assign(from, { x: event.offsetX, y: event.offsetY, moved: true });
    });
    canvas.addEventListener("pointerup", (event) => {
      if (from && !from.moved && this.marking && this.picture) {
        const { columns, rows } = this.picture;
        const x = (this.x + (event.offsetX - canvas.clientWidth / 2) / this.scale) / columns;
        const y = (this.y + (event.offsetY - canvas.clientHeight / 2) / (this.scale * this.aspect)) / rows;
        if (x >= 0 && x <= 1 && y >= 0 && y <= 1) {
          this.aim = { x, y };
          this.takeAim();
        }
      }
      from = null;
    });
    canvas.addEventListener("pointercancel", () => (from = null));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const lines = event.deltaMode === 0 ? event.deltaY / 100 : event.deltaY / 3;
        this.zoom(2 ** (-Math.max(-2, Math.min(2, lines)) / 3), { x: event.offsetX, y: event.offsetY });
      },
      { passive: false },
    );
  }
}

const clamp = (value) => Math.min(1, Math.max(0, value));
