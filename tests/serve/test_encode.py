import io

import av
import numpy as np
import pytest
from PIL import Image

from serve.encode import Encoder


def pictures(count: int, width: int, height: int) -> list[np.ndarray]:
    y, x = np.mgrid[:height, :width]
    return [np.stack([128 + 100 * np.sin((x + 3 * k) / 20), 128 + 100 * np.cos(y / 15), x * 0 + 90], -1).astype(np.uint8)
            for k in range(count)]


def decoded(codec: str, units: list[bytes]) -> list[np.ndarray]:
    if codec == "jpeg":
        return [np.asarray(Image.open(io.BytesIO(unit))) for unit in units]
    context = av.CodecContext.create(codec, "r")
    return [frame.to_ndarray(format="rgb24") for unit in units for frame in context.decode(av.Packet(unit))] + [
        frame.to_ndarray(format="rgb24") for frame in context.decode(None)]


@pytest.mark.parametrize("codec", ["vp8", "h264", "jpeg"])
@pytest.mark.parametrize("size", [(128, 96), (127, 95)])
def test_every_picture_is_out_at_once_and_looks_as_it_did(codec, size):
    width, height = size
    shown = pictures(10, width, height)
    encoder = Encoder(codec, width, height)
    units = [encoder.encode(picture) for picture in shown]
    assert all(unit.data for unit in units) and units[0].key
    back = decoded(codec, [unit.data for unit in units])
    assert len(back) == 10
    for picture, found in zip(shown, back):
        error = np.mean((picture.astype(float) - found[:height, :width]) ** 2)
        assert 10 * np.log10(255**2 / error) > 28


@pytest.mark.parametrize("codec", ["vp8", "h264"])
def test_a_picture_is_decodable_by_itself_when_it_is_asked_to_be(codec):
    encoder = Encoder(codec, 64, 64)
    units = [encoder.encode(picture, key=k == 5) for k, picture in enumerate(pictures(8, 64, 64))]
    assert [unit.key for unit in units] == [True, False, False, False, False, True, False, False]
    assert len(decoded(codec, [unit.data for unit in units[5:]])) == 3


@pytest.mark.parametrize("size, level", [(256, "1F"), (1024, "28"), (2048, "33")])
def test_the_codec_string_names_a_level_that_holds_the_size(size, level):
    assert Encoder("h264", size, size).codec_string == f"avc1.42E0{level}"
