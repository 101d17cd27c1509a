import pytest

from serve import protocol
from serve.protocol import Flag, Header, Kind, ProtocolError, SessionInit


def test_a_header_is_sixteen_bytes_little_endian_and_comes_back():
    header = Header(Kind.VIDEO, Flag.KEY | Flag.END, 513, 70_000, 1 << 40)
    packed = protocol.pack_header(header)
    assert packed[:8] == bytes([2, 3, 1, 2, 0x70, 0x11, 1, 0]) and len(packed) == 16
    assert protocol.unpack_header(packed + b"abc") == (header, b"abc")


@pytest.mark.parametrize("epoch, than, newer", [(1, 0, True), (0, 0, False), (0, 1, False), (0, 65535, True), (65535, 0, False)])
def test_epochs_are_compared_modulo_their_number(epoch, than, newer):
    assert protocol.is_newer(epoch, than) is newer


def test_an_init_has_defaults_and_is_read():
    assert protocol.parse_init({"type": "session.init"}) == SessionInit()
    known = {"type": "session.init", "avatar": "me", "want": ["landmarks", "video"], "codec": "h264", "sample_rate": 44100,
             "format": "f32", "seed": 7}
    init = protocol.parse_init(known)
    assert init == SessionInit("me", ("video", "landmarks"), "h264", 44100, "f32", 7)
    assert init.samples_per_frame == 1764 and init.bytes_per_sample == 4


@pytest.mark.parametrize("fields, message", [
    ({"sample_rate": 16001}, "sample_rate should be a multiple of 25 from 8000 to 192000, found 16001"),
    ({"sample_rate": True}, "sample_rate should be a multiple of 25 from 8000 to 192000, found True"),
    ({"codec": "h265"}, "codec should be vp8 or h264 or jpeg, found 'h265'"),
    ({"codec": ["vp8"]}, "codec should be vp8 or h264 or jpeg, found ['vp8']"),
    ({"want": []}, "want should be a list of video and landmarks, found []"),
    ({"want": [["video"]]}, "want should be a list of video and landmarks, found [['video']]"),
    ({"want": "video"}, "want should be a list of video and landmarks, found 'video'"),
    ({"avatar": 3}, "avatar should be a name, found 3"),
    ({"seed": -1}, "seed should be a whole number from 0 to 4294967295, found -1"),
    ({"speed": 2}, "session.init has no field 'speed'"),
])
def test_a_wrong_init_is_refused_with_its_value(fields, message):
    with pytest.raises(ProtocolError) as caught:
        protocol.parse_init({"type": "session.init", **fields})
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', "NaN", '{"type": NaN}', "[" * 100_000, '{"type": 3}', "\x00"])
def test_what_is_no_message_is_refused(text):
    with pytest.raises(ProtocolError):
        protocol.parse_control(text)


def test_numbers_are_checked():
    assert protocol.whole({"frame": 3}, "frame", 0, 10) == 3
    assert protocol.number({"x": 2.5}, "x", 0, 10) == 2.5
    for value in ("3", 1.5, True, None, -1, 11):
        with pytest.raises(ProtocolError, match="frame should be a whole number from 0 to 10, found"):
            protocol.whole({"frame": value}, "frame", 0, 10)
