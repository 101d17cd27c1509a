"""Phones of English speech by pocketsphinx: recognised, or aligned with words that are known. `pip install pocketsphinx`."""

import numpy as np

from shared.phones import PHONES, Marks

LEAST_PHONES = 10


def recognise(samples: np.ndarray, decoder) -> Marks:
    """Samples at 16 kHz -> the phones that pocketsphinx's own model recognises: words first, then their phones aligned."""
    decoder.activate_search()
    _decode(samples, decoder)
    if not decoder.hyp() or not decoder.hyp().hypstr:
        return []
    marks = align(samples, decoder, decoder.hyp().hypstr)
    return marks if len(marks) > LEAST_PHONES else []


def align(samples: np.ndarray, decoder, words: str) -> Marks:
    """Samples at 16 kHz in which these words are said -> their phones. RuntimeError where they do not fit the sound."""
    decoder.set_align_text(words)
    _decode(samples, decoder)
    decoder.set_alignment()
    _decode(samples, decoder)
    marks: Marks = [(0.0, "SIL")]
    stop = 0.0
    for word in decoder.get_alignment():
        for phone in word:
            marks.append((phone.start / 100, phone.name if phone.name in PHONES else "SIL"))
            stop = (phone.start + phone.duration) / 100
    return [*marks, (stop, "SIL")]


def _decode(samples: np.ndarray, decoder) -> None:
    decoder.start_utt()
    decoder.process_raw((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
