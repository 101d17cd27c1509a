"""The engine with a small trained avatar: rows and pictures equal those of the offline commands."""

import av
import numpy as np
import pytest
import torch

from serve.engine import Engine, LoadedAvatar
from serve.protocol import ROW, WINDOW, Flag, Header, Kind, SessionInit, unpack_header
from shared.avatar import Avatar
from shared.landmarks import MOVING
from shared.media.audio_io import load_audio
from shared.watermark.detect import detect
from shared.watermark.payload import avatar_id
from stage1_audio2lmk.stream import load_predictor, predict
from talkhead.synthesis import Renderer


class Recorder:
    """What would go to the clients."""

    def __init__(self) -> None:
        self.texts: list[dict] = []
        self.messages: list[tuple[int, Header, bytes]] = []
        self.ends: list[tuple[int, str, str]] = []

    def text(self, conversation: int, message: dict) -> None:
        self.texts.append({"conversation": conversation, **message})

    def data(self, conversation: int, message: bytes) -> None:
        self.messages.append((conversation, *unpack_header(message)))

    def closed(self, conversation: int, code: str, message: str) -> None:
        self.ends.append((conversation, code, message))


@pytest.fixture(scope="module")
def loaded(chain) -> LoadedAvatar:
    return LoadedAvatar("me", chain / "me.avatar", torch.device("cpu"))


@pytest.fixture(scope="module")
def speech(chain) -> np.ndarray:
    return load_audio(chain / "unheard.wav")


def pcm(samples: np.ndarray) -> bytes:
    return samples.astype("<f4").tobytes()


class Clock:
    """Runs an engine tick by tick and acknowledges every picture."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.now = engine, 0.0

    def tick(self, count: int = 1, acknowledge: bool = True) -> None:
        for _ in range(count):
            while self.engine.busy:
                self.engine.listen(self.now)
            self.engine.tick(self.now)
            for number, client in list(self.engine.clients.items()):
                if acknowledge and client.pictures:
                    self.engine.acknowledge(number, client.pictures - 1)
            self.now += 0.04


def test_rows_are_those_of_the_offline_prediction_and_pictures_show_them(chain, loaded, speech):
    sent = Recorder()
    engine = Engine(sent)
    engine.open(1, SessionInit(want=("video", "landmarks"), codec="jpeg", format="f32"), loaded)
    engine.sound(1, pcm(speech), 0.0)
    engine.end(1)
    Clock(engine).tick(55)
    rows = [ROW.unpack(data) for _, header, data in sent.messages if header.kind == Kind.ROW and not header.flags & Flag.IDLE]
    landmarks = np.array([row[1:] for row in rows], np.float32).reshape(-1, 68, 3)
    predictor = load_predictor(chain / "me.avatar" / "stage1.safetensors", torch.device("cpu"))
    expected = predict(predictor, speech, Avatar(chain / "me.avatar").load_neutral(), blinks=False)
    assert len(landmarks) == len(expected) == 50
    np.testing.assert_allclose(landmarks[:, MOVING], expected[:, MOVING], atol=2e-6)

    shown = [(header, data) for _, header, data in sent.messages if header.kind == Kind.JPEG and not header.flags & Flag.IDLE]
    assert [header.sample for header, _ in shown] == [640 * k for k in range(50)]
    import cv2

    renderer, track = Renderer(Avatar(chain / "me.avatar"), "cpu"), np.array([row[0] for row in rows])
    for k in (0, 17, 49):
        motion = loaded.motion
        truth = renderer.frames(landmarks[k : k + 1], motion.poses[track[k : k + 1]], motion.torso[track[k : k + 1]],
                                track[k : k + 1], motion.looks[track[k : k + 1]])[0].numpy()
        found = cv2.cvtColor(cv2.imdecode(np.frombuffer(shown[k][1], np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) / 255
        assert -10 * np.log10(np.mean((found - truth) ** 2)) > 30  # after the mark and JPEG


def test_ready_tells_what_a_client_must_know(loaded):
    sent = Recorder()
    Engine(sent).open(4, SessionInit(codec="h264", sample_rate=48000), loaded)
    ready = sent.texts[0]
    assert ready["type"] == "session.ready" and ready["conversation"] == 4
    assert (ready["width"], ready["height"], ready["fps"], ready["window"]) == (128, 128, 25, WINDOW)
    assert ready["codec_string"] == "avc1.42E01F" and ready["look_ahead_ms"] == 80 and ready["sample_rate"] == 48000


def test_conversations_of_one_avatar_are_drawn_together_and_do_not_mix(loaded, speech):
    """A third joins later; each gets the pictures that it gets alone."""
    def pictures(numbers: list[int]) -> dict[int, list[bytes]]:
        sent = Recorder()
        engine = Engine(sent)
        clock = Clock(engine)
        for number in numbers:
            engine.open(number, SessionInit(codec="jpeg", format="f32", seed=number), loaded)
            engine.sound(number, pcm(speech[: 640 * 15] * (0.5 if number == 2 else 1)), clock.now)
        clock.tick(8)
        return {number: [data for n, header, data in sent.messages if n == number] for number in numbers}

    together = pictures([1, 2, 3])
    for number in (1, 2, 3):
        assert together[number] == pictures([number])[number]


def test_a_client_that_acknowledges_nothing_gets_twelve_pictures_then_a_key_picture_when_it_wakes(loaded, speech):
    sent = Recorder()
    engine = Engine(sent)
    engine.open(1, SessionInit(codec="vp8", format="f32"), loaded)
    engine.sound(1, pcm(speech), 0.0)
    clock = Clock(engine)
    clock.tick(30, acknowledge=False)
    assert len(sent.messages) == WINDOW and engine.metrics.dropped == {"late": 0, "window": 30 - WINDOW}
    engine.acknowledge(1, WINDOW - 1)
    clock.tick(1)
    _, header, data = sent.messages[-1]
    assert header.frame == WINDOW and header.sample == 30 * 640 and header.flags & Flag.KEY
    assert len(av.CodecContext.create("vp8", "r").decode(av.Packet(data))) == 1


def test_a_mistake_of_one_client_ends_its_conversation_alone(loaded):
    from serve.engine import guarded

    sent = Recorder()
    engine = Engine(sent)
    for number in (1, 2):
        engine.open(number, SessionInit(codec="jpeg"), loaded)
    guarded(engine, 1, lambda: engine.acknowledge(1, 7))
    guarded(engine, 1, lambda: engine.sound(1, b"ab", 0.0))  # it is gone
    assert sent.ends == [(1, "bad_ack", "ack should name a picture that was sent, of 0 so far; found 7")]
    Clock(engine).tick(3)
    assert {number for number, _, _ in sent.messages} == {2}


def test_the_marks_of_a_video_are_in_the_live_pictures(loaded, speech):
    """Read from the H.264 as `talkhead verify` reads a file."""
    sent = Recorder()
    engine = Engine(sent)
    engine.open(1, SessionInit(codec="h264", format="f32"), loaded)
    clock = Clock(engine)
    clock.tick(250)
    context = av.CodecContext.create("h264", "r")
    frames = [frame.to_ndarray(format="rgb24") for _, _, data in sent.messages for frame in context.decode(av.Packet(data))]
    frames += [frame.to_ndarray(format="rgb24") for frame in context.decode(None)]
    assert len(frames) == 250
    found = detect(frames)
    assert found is not None and found.payload.avatar == avatar_id(loaded.renderer.info)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_pictures_of_a_gpu_are_those_of_a_cpu_for_any_number_at_once(chain, loaded):
    on_gpu = LoadedAvatar("me", chain / "me.avatar", torch.device("cuda"))
    frames = np.arange(5)
    faces = np.repeat(loaded.neutral[None], 5, axis=0)
    faces[:, 57, 1] -= 0.002 * np.arange(5)  # the lower lip goes down
    expected, found = (avatar.draw(faces, frames).astype(np.float32) for avatar in (loaded, on_gpu))
    assert found.shape == expected.shape == (5, 128, 128, 3)
    assert 10 * np.log10(255**2 / np.square(found - expected).mean()) > 38
