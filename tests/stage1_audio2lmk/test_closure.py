"""Contacts, apexes and peaks of lips that are known, and sounds in which nobody speaks."""

import json
from pathlib import Path

import numpy as np
import pytest

from shared.errors import TalkheadError
from shared.landmarks import LIPS_INNER, lip_opening, load_landmarks
from shared.phones import Marks, intervals, load_phones, save_phones, shifted
from stage1_audio2lmk import closure
from stage1_audio2lmk.audio.features import levels
from stage1_audio2lmk.closure import opening_scale, phone_figures

REST = 0.001
MARKS: Marks = [(0.0, "SIL")]
for _word in range(20):  # ba-ma-pa, 1.6 s a word with its pause
    _at = 1.6 * _word + 0.4
    MARKS += [(_at + k * 0.4 + lag, name) for k, word in enumerate(("B AA", "M AE", "P EH"))
              for lag, name in zip((0.0, 0.08), word.split())]
    MARKS += [(_at + 1.2, "SIL")]
SECONDS = 32.4
SEEN = np.ones(round(25 * SECONDS), bool)


def face(opening: np.ndarray) -> np.ndarray:
    """Openings (T,) metres -> landmarks (T,68,3) that have them."""
    rows = np.zeros((len(opening), 68, 3), np.float32)
    rows[:, [61, 62, 63], 1] = opening[:, None] / 2
    rows[:, [67, 66, 65], 1] = -opening[:, None] / 2
    return rows


def speech() -> np.ndarray:
    """(T,) 10 mm further open than at rest in vowels, at rest in the middle of /p b m/ and in pauses."""
    time = np.arange(len(SEEN)) / 25
    opening = np.full(len(time), REST + 0.010)
    for start, stop, name in intervals(MARKS, SECONDS):
        if name in ("B", "M", "P"):
            opening = np.minimum(opening, REST + np.clip(np.abs(time - (start + 0.04)) / 0.12, 0, 1) * 0.010)
        elif name == "SIL":
            away = np.maximum(np.maximum(start - time, time - stop), 0)
            opening = np.minimum(opening, REST + np.clip(away / 0.12, 0, 1) * 0.010)
    return opening


TRUE = speech()
SCALE = opening_scale(TRUE, REST)


def figures(opening: np.ndarray) -> dict[str, float]:
    return phone_figures(face(opening), face(TRUE), SCALE, MARKS, SEEN)


def test_the_scale_is_of_the_tracked_lips() -> None:
    assert SCALE == pytest.approx((REST, 0.010, REST + closure.CONTACT * 0.010))
    ajar = opening_scale(TRUE, REST + 0.003)  # a neutral with open lips does not make contacts of open lips
    assert ajar == SCALE
    talking = opening_scale(TRUE[TRUE > REST + 0.005], REST)  # nor does a talk whose lips never close
    assert talking.closed == REST and talking.contact == pytest.approx(SCALE.contact)
    still = opening_scale(np.full(50, REST), REST)
    assert still.spread == closure.LEAST_SPREAD and still.contact > REST


def test_a_perfect_copy() -> None:
    row = figures(TRUE)
    assert row == pytest.approx({"p b m": 60, "contact": 1, "false contact": 0, "apex ms": 0, "vowels": 60, "peaks": 1,
                                 "after speech mm/s": row["after speech mm/s"]}, abs=1e-5)


def test_a_mouth_that_never_opens_has_every_contact_and_nothing_else() -> None:
    row = figures(np.full(len(TRUE), REST))
    assert row["contact"] == 1 and row["false contact"] == 1
    assert row["peaks"] == pytest.approx(0, abs=1e-6) and row["apex ms"] == closure.NO_APEX_MS == 120
    assert row["after speech mm/s"] == 0


def test_a_mouth_that_never_closes_has_every_peak_and_nothing_else() -> None:
    row = figures(np.full(len(TRUE), REST + 0.010))
    assert row["contact"] == 0 and row["false contact"] == 0 and row["apex ms"] == 120
    assert row["peaks"] == pytest.approx(1, abs=1e-5)
    ajar = figures(np.full(len(TRUE), REST + 0.004))  # one that stands half open has next to nothing
    assert ajar["contact"] == 0 and ajar["peaks"] == pytest.approx(0.4, abs=1e-5)


@pytest.mark.parametrize("frames", [-2, 1, 2])
def test_a_copy_at_another_time_is_told_by_its_apexes(frames: int) -> None:
    """80 ms late, the contacts still lie about the phones, but each apex is 80 ms off and vowels begin with a contact."""
    row = figures(np.roll(TRUE, frames))
    assert row["apex ms"] == pytest.approx(40 * abs(frames), abs=2)
    assert row["contact"] == 1 and row["peaks"] == pytest.approx(1, abs=1e-5)
    assert figures(np.roll(TRUE, 4))["apex ms"] == 120 and figures(np.roll(TRUE, 4))["contact"] < 0.5
    assert figures(np.roll(TRUE, 4))["false contact"] > 0.05


def test_a_flattened_copy_loses_contacts_and_peaks() -> None:
    middle = REST + 0.005
    row = figures(middle + 0.5 * (TRUE - middle))
    assert row["contact"] == 0 and row["false contact"] == 0 and row["apex ms"] == pytest.approx(0, abs=1e-3)
    assert row["peaks"] == pytest.approx(0.75, abs=1e-5)
    small = figures(REST + 0.5 * (TRUE - REST))  # contacts stay
    assert small["contact"] == 1 and small["peaks"] == pytest.approx(0.5, abs=1e-5)
    assert small["after speech mm/s"] == pytest.approx(figures(TRUE)["after speech mm/s"] / 2)
    assert figures(REST + 0.02 * (TRUE - REST))["apex ms"] == 120  # no dip worth the name


def test_frames_that_are_not_seen_do_not_count() -> None:
    seen, opening = SEEN.copy(), TRUE.copy()
    seen[: len(seen) // 2] = False
    opening[: len(seen) // 2] = REST + 1.0
    row = phone_figures(face(opening), face(TRUE), SCALE, MARKS, seen)
    assert row["p b m"] == 30 and row["contact"] == 1 and row["peaks"] == pytest.approx(1, abs=1e-5)
    assert phone_figures(face(TRUE), face(TRUE), SCALE, MARKS, np.zeros_like(SEEN)) == {"p b m": 0, "vowels": 0}


def test_a_contact_after_a_pause_has_no_moment() -> None:
    opening = TRUE
    first, second = (closure.apex_errors_ms(opening, opening, SCALE, [phone], SEEN)
                     for phone in intervals(MARKS, SECONDS) if phone[2] in ("B", "M") and phone.start < 1.0)
    assert first.tolist() == [] and second == pytest.approx([0.0])


def test_of_two_contacts_nearby_the_closer_one_counts() -> None:
    opening = np.full(50, 0.010)
    opening[20], opening[23] = 0.0005, 0.0
    first, second = (closure.apex_errors_ms(opening, opening, closure.Scale(0.0, 0.010, 0.0015), [phone], np.ones(50, bool))
                     for phone in intervals([(0.0, "T"), (0.78, "B"), (0.82, "T"), (0.9, "M"), (0.94, "T")], 2.0)
                     if phone.name in ("B", "M"))
    assert first.tolist() == [] and second == pytest.approx([0.0])


def test_open_frames_lie_away_from_lips_that_may_touch() -> None:
    marks: Marks = [(0.0, "SIL"), (0.4, "AA"), (1.0, "F"), (1.2, "IY"), (1.6, "T"), (1.8, "EH"), (2.0, "UW"), (2.4, "SPN")]
    found = np.flatnonzero(closure.open_frames(intervals(marks, 3.0), np.ones(75, bool)))
    assert found.tolist() == [*range(12, 24), *range(32, 40), *range(45, 50)]


def test_movement_after_speech() -> None:
    """In the first 200 ms of a long pause, lips close at 50 mm/s; later movement and short pauses do not count."""
    marks: Marks = [(0.0, "SIL"), (0.4, "AA"), (1.0, "SIL"), (1.2, "AA"), (2.0, "SIL"), (2.6, "SPN"), (3.0, "SIL")]
    opening = np.zeros(100)
    opening[50:56] = 0.010 - 0.002 * np.arange(6)
    opening[60:] = 0.02 * (np.arange(40) % 2)
    speeds = closure.speed_after_speech(face(opening), intervals(marks, 4.0), np.ones(100, bool))
    assert speeds == pytest.approx([25 * 2 / 2 * 6 / 20], rel=1e-5)  # six of twenty points, each half of the opening
    assert LIPS_INNER[1] == 61


def test_gaps_above_the_neutral() -> None:
    gap = np.r_[np.zeros(90), np.full(10, 0.002)]
    assert closure.gap_figures(gap) == pytest.approx({"mean mm": 0.2, "95 % mm": 2.0})


def test_sounds_are_the_same_ones_at_their_levels() -> None:
    for name, make in closure.SOUNDS.items():
        sound = make()
        assert sound.dtype == np.float32 and len(sound) % 640 == 0 and np.abs(sound).max() <= 1, name
        np.testing.assert_array_equal(sound, make())
        if "noise" in name:
            assert 10 * np.log10((sound**2).mean()) == pytest.approx(float(name.split()[2].replace("−", "-")), abs=0.1)
    assert not np.array_equal(closure.breath(), closure.breath(seed=1))
    assert 10 * np.log10((closure.music().astype(float) ** 2).mean()) == pytest.approx(-20, abs=0.1)


def test_room_noise_falls_by_four_and_a_half_decibels_an_octave() -> None:
    power = np.abs(np.fft.rfft(closure.room_noise(-40.0, seconds=60))) ** 2
    bands = [10 * np.log10(power[round(60 * f) : round(60 * f * 1.2)].mean()) for f in (100, 200, 1600)]
    assert bands[0] - bands[1] == pytest.approx(4.5, abs=0.5) and bands[1] - bands[2] == pytest.approx(13.5, abs=0.5)


def test_breaths_come_and_go() -> None:
    level = levels(closure.breath())
    loud = level > -45
    edges = np.flatnonzero(np.diff(np.pad(loud.astype(int), 1)))
    lengths = np.diff(edges)[::2] / 25
    assert 4 <= len(lengths) <= 8 and ((lengths > 0.2) & (lengths < 0.8)).all()
    assert level[loud].max() < -28 and (level[~loud] < -60).sum() > 20
    spectrum = np.abs(np.fft.rfft(closure.breath())) ** 2
    hertz = np.fft.rfftfreq(len(closure.breath()), 1 / 16000)
    assert spectrum[(hertz > 250) & (hertz < 5500)].sum() > 0.95 * spectrum.sum()


def test_music_has_chords_over_a_bass_and_drums() -> None:
    sound = closure.music()
    spectrum, hertz = np.abs(np.fft.rfft(sound[:32000])) ** 2, np.fft.rfftfreq(32000, 1 / 16000)
    near = [spectrum[np.abs(hertz - tone) < 2].max() for tone in (65.4, 261.6, 329.6, 392.0)]
    assert min(near) > 20 * np.median(spectrum[(hertz > 50) & (hertz < 1000)])
    assert levels(sound).min() > -45


def test_phones_are_read_as_they_were_written(tmp_path: Path) -> None:
    save_phones(tmp_path / "phones.json", MARKS, "a test")
    assert load_phones(tmp_path / "phones.json") == MARKS
    assert json.loads((tmp_path / "phones.json").read_text())["source"] == "a test"
    assert intervals([(0.2, "AA"), (0.5, "M"), (0.5, "P"), (0.9, "SIL")], 0.8) == [(0.2, 0.5, "AA"), (0.5, 0.8, "P")]
    assert shifted([(0.0, "SIL"), (0.5, "P")], -0.25) == [(0.0, "SIL"), (0.25, "P")]


@pytest.mark.parametrize("phones, told", [
    (None, "expected \"phones\""), ([], "expected \"phones\""), ([[0.0]], r"expected \[seconds, name\]"),
    ([[True, "P"]], r"expected \[seconds, name\]"), ([[0, "AH0"]], "found 'AH0'"), ([[0, "p"]], "found 'p'"),
    ([[-1, "P"]], "rise from 0"), ([[1, "P"], [0.5, "AA"]], "found 0.5 after 1")])
def test_phones_that_are_not_valid_are_refused(phones: object, told: str, tmp_path: Path) -> None:
    (tmp_path / "phones.json").write_text(json.dumps({"phones": phones}))
    with pytest.raises(TalkheadError, match=told):
        load_phones(tmp_path / "phones.json")


@pytest.mark.slow
@pytest.mark.realdata
def test_tracked_lips_of_grid_talkers_close_for_p_b_m(realdata_dir: Path) -> None:
    """Sentences whose words their file names give: pbbc6p is 'place blue by c six please'."""
    pocketsphinx = pytest.importorskip("pocketsphinx")
    from shared.media.audio_io import load_audio
    from tools.phone_times import WIDE, phone_times

    folder = realdata_dir / "talkers" / "grid_s01_2"
    source = json.loads((folder / "source.json").read_text())
    commands = dict(b="bin", l="lay", p="place", s="set"), dict(b="blue", g="green", r="red", w="white"), dict(
        a="at", b="by", i="in", w="with")
    digits = dict(zip("z123456789", "zero one two three four five six seven eight nine".split()))
    said = []
    for (start, stop), file in list(zip(source["segments"], source["files"]))[:10]:
        code = Path(file["path"]).stem
        words = [table[key] for table, key in zip(commands, code)]
        words += [code[3], digits[code[4]], dict(a="again", n="now", p="please", s="soon")[code[5]]]
        said.append((start / 25, stop / 25, " ".join(words)))
    marks = phone_times(load_audio(folder / "audio.flac")[: 16000 * 30],
                        lambda: pocketsphinx.Decoder(samprate=16000, loglevel="FATAL", **WIDE), said)
    tracked, rest = load_landmarks(folder / "landmarks.npy")[:750], float(lip_opening(load_landmarks(folder / "neutral.npy"))[0])
    row = phone_figures(tracked, tracked, opening_scale(lip_opening(tracked), rest), marks, np.ones(750, bool))
    assert row["p b m"] >= 10 and row["contact"] > 0.9 and row["false contact"] < 0.06
    assert row["vowels"] >= 20 and row["peaks"] == 1 and row["apex ms"] == 0


