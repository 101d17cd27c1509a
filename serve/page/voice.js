// The user's own sound. It is sent at once and heard when its first picture is there; from then on it goes on, whatever becomes of
// the pictures, and the AudioContext's clock is the master.
//
// Both kinds of voice have: rate, length (samples so far), complete, playing, start(when) which lets sample 0 be heard at the
// context's time `when`, stop(), heard() -> the sample that is heard now.

const PIECE_SECONDS = 0.2; // in which a file is sent
const LEAD_SECONDS = 4; // by which a file is sent before it is heard
const LONGEST_DELAY = 60; // seconds between saying and hearing

class Voice {
  constructor(context, output) {
    this.context = context;
    this.output = output;
    this.rate = context.sampleRate;
    this.playing = false;
    this.complete = false; // no sound is to come
  }

  /** Sample that reaches the ear now; below 0 until the first does. */
  heard() {
    if (!this.playing) return -Infinity;
    const latency = this.context.outputLatency || this.context.baseLatency || 0;
    return Math.min((this.context.currentTime - latency - this.zero) * this.rate, this.complete ? this.length : Infinity);
  }

  start(when) {
    this.zero = when; // time at which sample 0 is heard
    this.playing = true;
    this.play(when);
  }
}

/** A sound that is known as a whole: an AudioBuffer. */
export class FileVoice extends Voice {
  constructor(context, output, sound) {
    super(context, output);
    this.buffer = context.createBuffer(1, sound.length, sound.sampleRate);
    const mono = this.buffer.getChannelData(0);
    for (let channel = 0; channel < sound.numberOfChannels; channel++) {
      const samples = sound.getChannelData(channel);
      for (let k = 0; k < mono.length; k++) mono[k] += samples[k] / sound.numberOfChannels;
    }
    this.length = sound.length;
    this.sent = 0;
  }

  /** Sends it piece by piece, a little ahead of what is heard; `end` when all is sent. */
  send(sound, end) {
    const step = () => {
      while (this.sent < this.length && this.sent < Math.max(0, this.heard()) + LEAD_SECONDS * this.rate) {
        const piece = this.buffer.getChannelData(0).subarray(this.sent, this.sent + PIECE_SECONDS * this.rate);
        sound(Int16Array.from(piece, (value) => Math.max(-32768, Math.min(32767, Math.round(value * 32768)))));
        this.sent += piece.length;
      }
      if (this.sent < this.length) return;
      clearInterval(this.timer);
      this.complete = true;
      end();
    };
    this.timer = setInterval(step, PIECE_SECONDS * 1000);
    step();
  }

  play(when) {
    this.source = this.context.createBufferSource();
    this.source.buffer = this.buffer;
    this.source.connect(this.output);
    this.source.start(when);
  }

  stop() {
    clearInterval(this.timer);
    this.source?.stop();
    this.playing = false;
  }
}

/** The microphone: captured for the server, and heard later through a delay line. */
export class MicrophoneVoice extends Voice {
  /** Throws what getUserMedia throws where the user or the machine says no. */
  static async open(context, output) {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true } });
    await context.audioWorklet.addModule(new URL("./capture.js", import.meta.url));
    return new MicrophoneVoice(context, output, stream);
  }

  constructor(context, output, stream) {
    super(context, output);
    this.stream = stream;
    this.length = 0;
    this.microphone = context.createMediaStreamSource(stream);
    this.capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    this.delay = context.createDelay(LONGEST_DELAY);
    this.gate = new GainNode(context, { gain: 0 });
    this.delay.connect(this.gate).connect(output);
    this.end = () => {};
  }

  /** Sends what is said from now on, until `finish`; `end` then. */
  send(sound, end) {
    this.end = end;
    this.capture.port.onmessage = ({ data }) => {
      if (this.complete) return;
      this.began = data.began; // the context's time at which sample 0 was said
      this.length += data.samples.length;
      sound(data.samples);
    };
    this.microphone.connect(this.capture);
    this.microphone.connect(this.delay);
  }

  /** When a sample was said, in the context's time. */
  said(sample) {
    return this.began + sample / this.rate;
  }

  play(when) {
    this.delay.delayTime.value = Math.min(LONGEST_DELAY, this.zero - this.began);
    this.gate.gain.setValueAtTime(0, this.context.currentTime);
    this.gate.gain.setValueAtTime(1, when);
  }

  /** The user has said all; what was said is still heard. */
  finish() {
    if (this.complete) return;
    this.complete = true;
    this.microphone.disconnect();
    for (const track of this.stream.getTracks()) track.stop();
    if (this.length) this.end();
  }

  stop() {
    this.end = () => {};
    this.finish();
    this.playing = false;
    this.delay.disconnect();
    this.gate.disconnect();
  }
}
