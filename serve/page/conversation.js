// One conversation with the server: tickets, the WebSocket, its messages. docs/live.md describes the protocol.

export const PROTOCOL = "talkhead.live.1";
export const FPS = 25;
export const VIDEO = 2, JPEG = 3; // kinds of binary messages
export const KEY = 1, END = 2, IDLE = 4; // their flags
const EPOCHS = 65536;
const HEADER_BYTES = 16;

/** Whether epoch `a` comes before `b`, both counted modulo 65536. */
export const isOlder = (a, b) => a !== b && (b - a + EPOCHS) % EPOCHS < EPOCHS / 2;

/** The HTTP interface said no; `status` 0 if nobody answered. */
export class Refused extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds, or NaN
  }
}

/** JSON of the HTTP interface; throws Refused. */
export async function request(path, token, method = "GET") {
  let answer;
  try {
    answer = await fetch(path, { method, headers: token ? { Authorization: `Bearer ${token}` } : {} });
  } catch {
    throw new Refused(0, "The server does not answer.");
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    throw new Refused(answer.status, body.error?.message ?? `The server answered ${answer.status}.`,
                      Number.parseFloat(answer.headers.get("Retry-After")));
  }
  return body;
}

/** Opens at once; `on` has ready(message), picture(header, payload), text(message), closed({code, message}). */
export class Conversation {
  constructor({ avatar, codec, rate, token, on }) {
    this.on = on;
    this.next = 0; // epoch of the sound that is sent next
    this.error = null; // what the server said before it closed
    this.over = false;
    this.#open(avatar, codec, rate, token);
  }

  async #open(avatar, codec, rate, token) {
    try {
      const live = await request("v1/live", token, "POST");
      if (this.over) return;
      const url = new URL(live.url, document.baseURI);
      url.protocol = url.protocol.replace("http", "ws");
      this.socket = new WebSocket(url, [PROTOCOL, `ticket.${live.ticket}`]);
    } catch (error) {
      this.#closed(error);
      return;
    }
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => this.#tell({ type: "session.init", avatar, want: ["video"], codec, sample_rate: rate, format: "s16" });
    this.socket.onmessage = ({ data }) => (typeof data === "string" ? this.#text(JSON.parse(data)) : this.#binary(data));
    this.socket.onclose = ({ code }) => this.#closed({ code: this.error?.code, status: code, message: this.error?.message });
  }

  #text(message) {
    if (this.over) return;
    if (message.type === "session.ready") {
      this.next = message.epoch;
      this.ready = true;
      this.on.ready(message);
    } else if (message.type === "error") this.error = message;
    else this.on.text(message);
  }

  #binary(data) {
    if (this.over || data.byteLength < HEADER_BYTES) return;
    const view = new DataView(data);
    const header = { kind: view.getUint8(0), flags: view.getUint8(1), epoch: view.getUint16(2, true), frame: view.getUint32(4, true),
                     sample: Number(view.getBigUint64(8, true)) };
    if (header.kind === VIDEO || header.kind === JPEG) this.on.picture(header, new Uint8Array(data, HEADER_BYTES));
  }

  #closed(why) {
    if (this.over) return;
    this.over = true;
    this.on.closed(why);
  }

  #tell(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  /** Int16Array, mono, of the epoch `next`. */
  sound(samples) {
    if (this.ready && this.socket.readyState === WebSocket.OPEN) this.socket.send(samples);
  }

  /** The speech of this epoch is complete; only after some of it was sent. */
  end() {
    this.#tell({ type: "segment.end" });
    this.next = (this.next + 1) % EPOCHS;
  }

  /** Nothing more of what was said so far, please. */
  interrupt() {
    this.next = (this.next + 1) % EPOCHS;
    this.#tell({ type: "interrupt", epoch: this.next });
  }

  ack(frame) {
    this.#tell({ type: "ack", frame });
  }

  stats(epoch, played, offset) {
    this.#tell({ type: "stats", epoch, played, av_offset_ms: offset });
  }

  close() {
    this.over = true;
    this.socket?.close(1000);
  }
}
