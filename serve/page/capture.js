// AudioWorklet: what comes in, as Int16 in pieces of one picture's length (40 ms), with the time of the first sample.

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(sampleRate / 25);
    this.filled = 0;
    this.began = null;
  }

  process([input]) {
    const sound = input[0];
    if (!sound) return true; // the microphone is not there yet
    this.began ??= currentTime;
    for (const value of sound) {
      this.piece[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(value * 32768)));
      if (this.filled === this.piece.length) {
        this.port.postMessage({ began: this.began, samples: this.piece.slice() });
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
