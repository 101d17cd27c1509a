// The page: who speaks, what is shown, what is said about it.

import { Conversation, FPS, request } from "./conversation.js";
import { pickCodec, Screen } from "./screen.js";
import { FileVoice, MicrophoneVoice } from "./voice.js";

const LEAST_BUFFER = 0.04, MOST_BUFFER = 0.24; // seconds from the first picture of a segment to its sound
const STEADY_LEAD = 1.5; // pictures by which the server's lead over the sound may change before it is told so often
const MOST_ATTEMPTS = 6, STEADY = 10_000; // connections in a row; ms after which one counts as good

const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const query = new URLSearchParams(location.search);

let context, output, meter; // the sound card, made once
let conversation, codec, token = sessionStorage.getItem("token") ?? "";
let voice = null; // what is being said, with `epoch`, `first` (when its first sound went out), `newest` (sample of its newest picture)
let asking = false; // the browser is asking for the microphone
let attempts = 0, retry, since = Infinity; // connections that failed in a row; when the conversation began
let gaps = [], arrived = 0; // ms between the last pictures
let pictures = [], offsets = []; // of the last second: when drawn; ms by which the picture came after its sound
let latencies = []; // ms from sound to picture: of each picture at the microphone, of the first of a file
let missing = 0; // pictures of speech that the server left out

// ---- what the page says -------------------------------------------------------------------------------------------------

function say(state, text) {
  document.body.dataset.state = state;
  if (ui.status.textContent !== text) ui.status.textContent = text;
}

function rest(text = "Ready.") {
  say("ready", `${text} ${canSpeak() ? "Speak, or choose a sound." : "Choose a sound."}`);
  buttons(true);
}

function buttons(open) {
  const microphone = voice instanceof MicrophoneVoice && !voice.complete;
  ui.speak.disabled = !open || !canSpeak();
  ui.speak.setAttribute("aria-pressed", microphone);
  ui.speak.lastElementChild.textContent = microphone ? "Done" : "Speak";
  ui.choose.disabled = ui.example.disabled = !open;
  ui.interrupt.disabled = !open || !voice;
}

function veil(text, { again = false, token = false } = {}) {
  ui.veil.hidden = !text;
  ui.trouble.textContent = text;
  ui.again.hidden = !again;
  ui["token-form"].hidden = !token;
  if (token) ui.token.focus();
}

const canSpeak = () => Boolean(navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode);

function tellLimits() {
  const lacks = [];
  if (!canSpeak()) lacks.push("the microphone");
  if (!("VideoDecoder" in window)) lacks.push("WebCodecs, so pictures come as JPEG and take more of the network");
  if (!lacks.length) return;
  ui.notice.hidden = false;
  ui.notice.textContent = window.isSecureContext
    ? `This browser lacks ${lacks.join(", and ")}. Sound files work all the same.`
    : `This page came over plain http, for which browsers switch off ${lacks.join(", and ")}. Sound files work all the same. `
      + "For the rest open it over https (talkhead serve --tls-cert … --tls-key …), or through an SSH tunnel at http://127.0.0.1.";
}

// ---- sound card ---------------------------------------------------------------------------------------------------------

function openSound() {
  if (context) return;
  context = new AudioContext({ latencyHint: "interactive" });
  if (context.sampleRate % FPS) context = new AudioContext({ latencyHint: "interactive", sampleRate: 48000 });
  output = new GainNode(context);
  meter = new AnalyserNode(context, { fftSize: 1024 });
  output.connect(context.destination);
  ui.hear.onchange = () => output.gain.setTargetAtTime(ui.hear.checked ? 1 : 0, context.currentTime, 0.01);
}

// ---- the conversation ---------------------------------------------------------------------------------------------------

async function connect() {
  clearTimeout(retry);
  conversation?.close();
  drop();
  buttons(false);
  say("connecting", attempts ? ui.status.textContent : "Connecting…");
  openSound();
  try {
    if (!ui.avatar.length) await listAvatars();
    codec ??= await pickCodec(query.get("codec"));
  } catch (error) {
    return lost(error);
  }
  const mine = conversation = new Conversation({ avatar: ui.avatar.value, codec, rate: context.sampleRate, token, on: {
    ready(message) {
      missing = screen.late = 0;
      since = performance.now();
      gaps = [];
      screen.configure(message);
      ui.format.textContent = `${message.width} × ${message.height}, ${message.codec.toUpperCase()}.`;
      veil("");
      rest();
    },
    picture(header, data) {
      const now = performance.now();
      if (arrived) gaps = [...gaps.slice(-2 * FPS), now - arrived];
      arrived = now;
      screen.push(header, data);
    },
    text(message) {
      if (message.type === "session.closing") say(document.body.dataset.state, "The server is shutting down.");
    },
    closed: (why) => mine === conversation && lost(why),
  } });
}

async function listAvatars() {
  const { data } = await request("v1/avatars", token);
  ui.avatar.replaceChildren(...data.map((avatar) => new Option(avatar.name ?? avatar.id)));
  ui.avatar.value = query.get("avatar") ?? ui.avatar.value;
  if (ui.avatar.selectedIndex < 0) ui.avatar.selectedIndex = 0;
  ui.avatar.disabled = data.length < 2;
}

/** The conversation is gone, or did not begin. */
function lost(why) {
  drop();
  buttons(false);
  const status = why.status, message = why.message ?? (why instanceof Error ? String(why) : "The connection broke.");
  if (status === 401 || status === 403 && token) {
    say("error", "Not connected.");
    return veil(token ? "The server does not know this token." : "This server asks for its access token.", { token: true });
  }
  attempts = performance.now() - since > STEADY ? 1 : attempts + 1;
  since = Infinity;
  if (attempts > MOST_ATTEMPTS || status >= 400 && status < 500 && status !== 429) {
    say("error", "Not connected.");
    return veil(sentence(message), { again: true });
  }
  const seconds = why.retryAfter || Math.min(8, 2 ** (attempts - 2));
  const reason = why.code === "worker_lost" ? "The program that draws this avatar broke off." : sentence(message);
  say("connecting", "Connecting again…");
  veil(reason, { again: true });
  retry = setTimeout(connect, seconds * 1000);
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".");

// ---- speaking -----------------------------------------------------------------------------------------------------------

/** Something new is said; what was being said is broken off. */
function begin(next, text) {
  if (!conversation.ready || conversation.over) return next.stop(); // it was lost meanwhile
  interrupt();
  voice = Object.assign(next, { epoch: conversation.next, first: null, newest: -1 });
  latencies = [];
  say("listening", text);
  const { epoch } = voice, mine = conversation;
  voice.send((samples) => {
    voice.first ??= performance.now();
    mine.sound(samples);
  }, () => mine.next === epoch && mine.end());
  buttons(true);
}

/** At once, here; and the server hears of it. */
function interrupt() {
  if (!voice) return;
  drop();
  conversation.interrupt();
  screen.clear(conversation.next);
  rest("Interrupted.");
}

/** Forget what is being said. */
function drop() {
  voice?.stop();
  voice = null;
}

async function speak() {
  if (voice instanceof MicrophoneVoice && !voice.complete) {
    voice.finish();
    if (voice.length) return buttons(true);
    drop(); // nothing was said
    return rest();
  }
  if (asking) return;
  asking = true;
  await context.resume();
  try {
    const microphone = await MicrophoneVoice.open(context, output);
    microphone.microphone.connect(meter);
    begin(microphone, "Listening: speak.");
  } catch (error) {
    say("ready", error.name === "NotAllowedError" ? "The browser was not allowed to use the microphone; allow it beside the address."
      : error.name === "NotFoundError" ? "No microphone was found; connect one, or choose a sound file." : sentence(error.message));
  } finally {
    asking = false;
  }
}

async function play(bytes, name) {
  await context.resume();
  let sound;
  try {
    sound = await context.decodeAudioData(await bytes);
  } catch {
    return say("ready", `${name} holds no sound that this browser can read; choose a WAV, MP3, M4A or Ogg file.`);
  }
  begin(Object.assign(new FileVoice(context, output, sound), { name }), `Sending ${name} …`);
}

/** How long the sound waits for pictures after the first, so that those that come late are still there in time. */
function buffer() {
  const largest = Math.max(0, ...gaps.slice(-FPS)) / 1000 - 1 / FPS;
  return Math.min(MOST_BUFFER, Math.max(LEAST_BUFFER, largest));
}

const screen = new Screen(ui.face, (epoch) => (voice?.epoch === epoch ? voice.heard() : null), {
  taken: ({ frame }) => conversation.ack(frame),

  speech({ epoch, sample }) {
    if (voice?.epoch !== epoch) return;
    if (voice.newest >= 0) missing += Math.max(0, Math.round((sample - voice.newest) / voice.rate * FPS) - 1);
    voice.newest = sample;
    if (!voice.playing) {
      voice.start(context.currentTime + buffer());
      say("speaking", voice.said ? "Listening and speaking." : `Speaking ${voice.name}.`);
    }
    voice.leads = [...(voice.leads ?? []).slice(-FPS), (sample - voice.heard()) / voice.rate * FPS];
    voice.lead ??= voice.leads[0];
  },

  shown({ epoch, sample, idle }, heard) {
    const now = performance.now();
    pictures.push(now);
    const offset = heard === null ? null : (heard - sample) / voice.rate * 1000;
    if (offset !== null) offsets.push([now, offset]);
    if (offset !== null && voice.said) latencies = [...latencies.slice(-FPS), (context.currentTime - voice.said(sample)) * 1000];
    else if (offset !== null && !latencies.length) latencies.push(now - voice.first);
    ui.face.dispatchEvent(new CustomEvent("shown", { detail: { epoch, sample, idle, offset, now } }));
  },

  failed(error) {
    if (codec === "jpeg") return lost(error);
    codec = "jpeg"; // plainer pictures, which every browser reads
    connect();
  },
});

// ---- several times a second ---------------------------------------------------------------------------------------------

function watch() {
  if (!voice?.playing) return;
  if (voice.complete && voice.heard() >= voice.length) {
    drop();
    rest();
  } else if (Math.abs(Math.max(...voice.leads) - voice.lead) > STEADY_LEAD) tell(); // each time brings the server a picture nearer
}

function tell(offset = 0) {
  if (voice?.playing && voice.heard() >= 0) conversation.stats(voice.epoch, Math.round(voice.heard()), Math.round(offset));
}

function measure() {
  const now = performance.now();
  pictures = pictures.filter((when) => when > now - 1000);
  offsets = offsets.filter(([when]) => when > now - 1000);
  const offset = median(offsets.map(([, value]) => value));
  ui.rate.textContent = pictures.length || "–";
  ui.dropped.textContent = missing + screen.late;
  if (latencies.length) ui.latency.textContent = `${Math.round(median(latencies))} ms`;
  if (offset !== null) ui.offset.textContent = `${Math.round(offset)} ms`;
  tell(offset ?? 0);
}

function median(values) {
  if (!values.length) return null;
  return values.toSorted((a, b) => a - b)[values.length >> 1];
}

/** The ring round the face follows the microphone. */
function glow() {
  let level = 0;
  if (voice instanceof MicrophoneVoice && !voice.complete) {
    const sound = new Float32Array(meter.fftSize);
    meter.getFloatTimeDomainData(sound);
    level = Math.min(1, 6 * Math.sqrt(sound.reduce((sum, value) => sum + value * value, 0) / sound.length));
  }
  document.body.style.setProperty("--level", level.toFixed(2));
}

setInterval(watch, 100);
setInterval(glow, 50);
setInterval(measure, 1000);

// ---- controls -----------------------------------------------------------------------------------------------------------

ui.speak.onclick = speak;
ui.choose.onclick = () => ui.file.click();
ui.example.onclick = () => play(fetch(new URL("./example.mp3", import.meta.url)).then((answer) => answer.arrayBuffer()), "the example");
ui.file.onchange = () => {
  const [file] = ui.file.files;
  if (file) play(file.arrayBuffer(), file.name);
  ui.file.value = "";
};
ui.interrupt.onclick = () => {
  interrupt();
  (canSpeak() ? ui.speak : ui.choose).focus(); // its own button can no longer have it
};
document.addEventListener("keydown", (event) => event.key === "Escape" && interrupt());
ui.avatar.onchange = () => connect();
ui.again.onclick = () => {
  attempts = 0;
  connect();
};
ui["token-form"].onsubmit = (event) => {
  event.preventDefault();
  token = ui.token.value.trim();
  sessionStorage.setItem("token", token);
  connect();
};

tellLimits();
connect();
