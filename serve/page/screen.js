// Pictures: decoded as they come, kept until the sound that they show is heard, then drawn.

import { FPS, IDLE, JPEG, KEY, isOlder } from "./conversation.js";

const MICROSECONDS = 1e6 / FPS; // of a picture
const MOST_WAITING = 12; // decoded pictures; a decoder has no more
const IDLE_GAP = 30; // ms at least between two resting pictures
const IDLE_WAITING = 3; // resting pictures that may wait before some are left out

/** The first of VP8, H.264 and JPEG that this browser can decode; `wanted` names the only one besides JPEG that will do. */
export async function pickCodec(wanted) {
  const names = { vp8: "vp8", h264: "avc1.42E01F" };
  if ("VideoDecoder" in window) {
    for (const [codec, name] of Object.entries(names)) {
      if ((wanted ?? codec) === codec && (await VideoDecoder.isConfigSupported({ codec: name })).supported) return codec;
    }
  }
  return "jpeg";
}

/**
 * `on` has taken(header) for each decoded picture, speech(header) for each that shows speech, shown(picture, heard) for each drawn,
 * failed(error). `clock(epoch)` -> the sample of that epoch that is heard now, or null where it has no sound.
 */
export class Screen {
  constructor(canvas, clock, on) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.clock = clock;
    this.on = on;
    this.waiting = [];
    this.epoch = 0; // pictures of older ones are decoded, for later ones build on them, and not shown
    this.late = 0; // speech pictures that another one overtook
    this.drawn = 0; // when, ms
    const draw = (now) => {
      this.#draw(now);
      requestAnimationFrame(draw);
    };
    requestAnimationFrame(draw);
  }

  /** For a new conversation. */
  configure({ codec, codec_string: name, width, height, epoch }) {
    this.clear(epoch);
    if (this.decoder && this.decoder.state !== "closed") this.decoder.close();
    this.headers = new Map();
    this.bitmaps = Promise.resolve();
    this.canvas.width = width;
    this.canvas.height = height;
    this.decoder = codec === "jpeg" ? null : new VideoDecoder({
      output: (frame) => this.#decoded(frame, frame.timestamp / MICROSECONDS),
      error: (error) => this.on.failed(error),
    });
    this.decoder?.configure({ codec: name, optimizeForLatency: true });
  }

  /** A picture of the server: header and bytes. */
  push(header, data) {
    this.headers.set(header.frame, header);
    if (header.kind === JPEG) {
      const { headers } = this;
      const bitmap = createImageBitmap(new Blob([data], { type: "image/jpeg" }));
      this.bitmaps = this.bitmaps.then(async () => {
        const image = await bitmap;
        if (headers === this.headers) this.#decoded(image, header.frame); // else it is of a conversation before
      }).catch((error) => this.on.failed(error));
    } else {
      const type = header.flags & KEY ? "key" : "delta";
      this.decoder.decode(new EncodedVideoChunk({ type, timestamp: header.frame * MICROSECONDS, data }));
    }
  }

  /** Forget what waits; from now on show `epoch` and newer ones. */
  clear(epoch) {
    this.epoch = epoch;
    for (const { image } of this.waiting.splice(0)) image.close();
  }

  #decoded(image, frame) {
    const header = this.headers.get(frame);
    this.headers.delete(frame);
    this.on.taken(header);
    if (isOlder(header.epoch, this.epoch)) return image.close();
    this.waiting.push({ image, idle: Boolean(header.flags & IDLE), ...header });
    if (!(header.flags & IDLE)) {
      this.#skip((picture) => picture.idle); // speech begins: no rest before it
      this.on.speech(header);
    }
    while (this.waiting.length > MOST_WAITING) this.#drop();
  }

  #skip(unwanted) {
    while (this.waiting.length > 1 && unwanted(this.waiting[0])) this.waiting.shift().image.close();
  }

  #drop() {
    const picture = this.waiting.shift();
    picture.image.close();
    if (!picture.idle) this.late += 1;
  }

  #due(picture, now) {
    const heard = picture.idle ? null : this.clock(picture.epoch);
    if (heard !== null) return picture.sample <= heard;
    return now - this.drawn >= IDLE_GAP || this.waiting.length > IDLE_WAITING;
  }

  #draw(now) {
    while (this.waiting.length > 1 && this.#due(this.waiting[0], now) && this.#overtaken(now)) this.#drop();
    const picture = this.waiting[0];
    if (!picture || !this.#due(picture, now)) return;
    this.waiting.shift();
    this.context.drawImage(picture.image, 0, 0, this.canvas.width, this.canvas.height);
    picture.image.close();
    this.drawn = now;
    this.on.shown(picture, picture.idle ? null : this.clock(picture.epoch));
  }

  #overtaken(now) {
    const [first, second] = this.waiting;
    if (first.idle !== second.idle) return false;
    return first.idle ? this.waiting.length > IDLE_WAITING : this.#due(second, now);
  }
}
