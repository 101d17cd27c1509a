"""espeak-ng through its C library (speak_lib.h): sound, and the time of every phoneme."""

import ctypes
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

RETRIEVAL, SYNCHRONOUS = 1, 2  # outputs: sound in buffers of a given length, or as it comes
RATE, PITCH, RANGE = 1, 3, 4  # parameters: words a minute, pitch and its range from 0 to 100
_PHONEME_EVENTS, _UTF8 = 1, 1
_EVENT_END, _EVENT_PHONEME = 0, 7


class _Name(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", _Name),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class PhonemeMark(NamedTuple):
    """Begin of a phoneme, in milliseconds and as sample number, and its mnemonic in UTF-8."""

    milliseconds: int
    sample: int
    name: bytes


class Espeak:
    """A loaded espeak-ng library. `rate`: samples a second of its sound, 0 or less if it cannot start."""

    def __init__(self, library: str, *, output: int, buffer_ms: int = 0, data: str | None = None) -> None:
        """`library`: path or name of the library; `data`: the folder of espeak-ng-data, by default the system's."""
        self._library = ctypes.CDLL(library)
        self.rate = self._library.espeak_Initialize(output, buffer_ms, data.encode() if data else None, _PHONEME_EVENTS)
        self._sound: list[np.ndarray] = []
        self._marks: list[PhonemeMark] = []
        self._callback = _CALLBACK(self._receive)  # kept, since the library holds only its address
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, count, events) -> int:
        if samples and count > 0:
            self._sound.append(np.ctypeslib.as_array(samples, (count,)).copy())
        k = 0
        while events[k].type != _EVENT_END:
            if events[k].type == _EVENT_PHONEME:
                self._marks.append(PhonemeMark(events[k].audio_position, events[k].sample, events[k].id.string))
            k += 1
        return 0

    def set_voice(self, voice: str) -> bool:
        """Choose a voice by name; returns whether it exists."""
        return self._library.espeak_SetVoiceByName(voice.encode()) == 0

    def say(self, text: str, parameters: Mapping[int, int]) -> tuple[np.ndarray, list[PhonemeMark]]:
        """Text -> sound (n,) int16 at `rate`, and the phonemes; `parameters` by RATE, PITCH and RANGE."""
        self._sound, self._marks = [], []
        for parameter, value in parameters.items():
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate([np.zeros(0, np.int16), *self._sound]), self._marks
