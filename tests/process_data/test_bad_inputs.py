"""Bad and odd inputs: what docs/bad_inputs.md says of each of them is what happens. Its sentences stand only there."""

import json
import os
import re
import struct
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner

from cli import cli
from process_data import quality
from process_data.actor.actor import make_actor
from process_data.config import ProcessConfig
from process_data.detection.detection_pass import DetectorChoice
from process_data.pipeline import BUILT, run_name
from process_data.video import load_sound
from process_data.workers import Workers
from shared.camera import project
from shared.clip import Clip, ClipInfo, Shot
from shared.face_check import TEMPLATE
from shared.files import sha256
from shared.landmarks import FPS, SAMPLE_RATE, save_array, save_landmarks
from shared.media.audio_io import load_audio, save_wav
from shared.media.video_io import GrayVideoWriter, VideoWriter, probe, read_video, write_png
from shared.publish import work_folder

ROOT = Path(__file__).resolve().parents[2]
LINES = re.findall(r"^\| (.+?) \| (.+?) \| (.*?) ?\|$", (ROOT / "docs/bad_inputs.md").read_text(), re.M)
TABLE = {what: (happens, sentence) for what, happens, sentence in LINES if what != "input" and not what.startswith("---")}
ELSEWHERE = {"a killed process": ("tests/process_data/test_pipeline.py", "test_an_interrupted_run_continues_and_ends_the_same")}
for title, test in {
        "What people edit": ("tests/shared/test_edited_files.py", "test_an_edited_file_is_refused_or_read_as_the_page_says"),
        "Avatar files": ("tests/shared/test_avatar_file.py", "test_hostile_files_are_refused_with_a_sentence"),
        "Serve": ("tests/serve/test_command.py", "test_what_keeps_it_from_starting_is_said_as_on_the_page")}.items():
    section = (ROOT / "docs/bad_inputs.md").read_text("utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    ELSEWHERE |= {what: test for what in re.findall(r"^\| (.+?) \|", section, re.M) if what in TABLE}
KEEPS, CONTENT, LOCKS, TRAINING = ("tests/process_data/test_process_keeps.py", "tests/shared/test_content.py",
                                   "tests/shared/test_lock_publish.py", "tests/talkhead/test_training.py")
ELSEWHERE |= {
    "VIDEO is CLIP/video.mp4, by path or by a link": (KEEPS, "test_the_source_is_never_written_over"),
    "CLIP holds other files, be it the recording": (KEEPS, "test_a_folder_of_other_things_is_left_alone"),
    "CLIP is an avatar": (KEEPS, "test_a_folder_of_other_things_is_left_alone"),
    "a refused process --overwrite": (KEEPS, "test_a_refused_run_leaves_the_finished_clip_as_it_was"),
    "a refused process into an empty folder": (KEEPS, "test_a_refused_run_leaves_the_finished_clip_as_it_was"),
    "a process that is killed while it replaces a clip": (LOCKS, "test_killed_at_any_step_the_folder_is_the_old_or_the_new_one"),
    "another video into a trained clip, with --overwrite": (KEEPS, "test_what_was_derived_from_another_video_goes_with_it"),
    "CLIP on which another talkhead works": (KEEPS, "test_one_run_a_clip"),
    "an output that another talkhead makes": (LOCKS, "test_an_output_is_made_by_one_process_at_a_time"),
    "a lock of a process that was killed": (LOCKS, "test_a_second_run_is_refused_and_told_which_process_is_at_work"),
    "an output that is an input, by path or by a link": (LOCKS, "test_an_output_that_is_an_input_is_refused_by_any_path"),
    "an output folder in which an input lies": (LOCKS, "test_an_output_that_is_an_input_is_refused_by_any_path"),
    "stage2 render into a folder of other things": (TRAINING, "test_a_folder_with_other_files_is_no_folder_of_frames"
                                                              "_and_no_earlier_demo"),
    "demo into an earlier demo with other files": (TRAINING, "test_a_folder_with_other_files_is_no_folder_of_frames"
                                                             "_and_no_earlier_demo"),
    "a training that was broken off, of another clip or with other settings": (
        "tests/shared/test_resume.py", "test_a_training_of_anything_else_is_refused_by_name"),
    "a training into an avatar of another clip": (CONTENT, "test_parts_of_different_clips_are_refused"),
    "an avatar with parts of different clips": (CONTENT, "test_parts_of_different_clips_are_refused"),
    "an avatar folder with a damaged or replaced `torso_layers.mp4`": (
        CONTENT, "test_a_damaged_or_swapped_stored_torso_is_refused_where_it_is_used"),
    "an avatar with damaged or replaced bytes in a part": (CONTENT, "test_a_damaged_or_swapped_part_is_refused"),
    "an avatar whose neutral, motion track or background was edited": (CONTENT, "test_an_edited_background_is_shown_with_a_"
                                                                               "warning_until_it_is_accepted"),
    "fitted poses of another head or of another content of the clip": (CONTENT, "test_fitted_poses_are_of_one_head_and_one"
                                                                               "_content"),
    "an avatar made before parts knew their clip": (CONTENT, "test_avatars_from_before_still_open"),
    "a training that is given --overwrite": (TRAINING, "test_overwrite_takes_what_can_be_resumed_and_leaves_evaluations"
                                                       "_and_curves"),
}
ELSEWHERE |= {what: ("tests/shared/media/test_sound_track.py", test) for what, test in {
    "sound whose codec the video's container takes": "test_the_sound_is_that_of_the_file_and_in_step",
    "sound of another codec": "test_encoded_sound_keeps_its_rate_and_channels",
    "sound to be spoken that starts late or has gaps": "test_sound_that_starts_late_keeps_its_silence",
    "damaged packets of sound": "test_damaged_sound_does_not_break_the_video",
    "titles, covers and chapters of the sound": "test_nothing_else_of_the_file_gets_into_the_video"}.items()}
ELSEWHERE |= {what: ("tests/shared/media/test_sound_check.py", test) for what, test in {
    **dict.fromkeys(["sound that is silent, to be spoken", "sound shorter than half a second",
                     "floating-point sound 32768 times too loud", "floating-point sound 32768 times too quiet",
                     "sound with a DC offset"], "test_bad_sound_is_told_in_the_sentences_of_the_page"),
    "AUDIO is a pipe, `-` or `<(…)`": "test_a_pipe_is_read_once_into_a_file",
    "AUDIO is a device or a terminal": "test_a_pipe_is_read_once_into_a_file",
    "AUDIO is a pipe and TMPDIR is full": "test_a_pipe_that_does_not_fit_on_the_disk_is_a_sentence"}.items()}
ELSEWHERE |= {what: ("tests/talkhead/test_synthesized_sound.py", test) for what, test in {
    "sound longer than the landmarks": "test_a_difference_in_length_is_told",
    "sound shorter than the landmarks": "test_a_difference_in_length_is_told",
    "OUT is a pipe, a device or `-`": "test_a_video_is_never_put_into_a_pipe_a_device_or_over_its_own_sound",
    "a poses file shorter than the video": "test_poses_that_are_shorter_than_the_video_are_told",
    "poses that put the head out of the picture": "test_a_head_out_of_sight_is_told",
    "a stage 1 that gives no numbers": "test_what_is_no_number_is_not_rendered",
    "eval into the avatar": "test_an_avatar_holds_no_pictures_of_evaluations",
    "eval of a split in which no face is found": "test_a_split_without_a_face_is_a_sentence",
    "inspect of an avatar that was evaluated by an earlier version": "test_an_avatar_holds_no_pictures_of_evaluations",
    "--start behind the end of the sound": "test_a_part_of_the_sound_is_spoken",
    "--start behind the end of the landmarks": "test_a_part_of_the_sound_is_spoken",
    "--end before --start": "test_a_part_of_the_sound_is_spoken",
    "--start 1:75": "test_other_times_are_refused",
    "--background none with a .mp4 or .mkv": "test_scene_and_rate_reach_the_file",
    "several sounds with one video as -o": "test_videos_are_named_after_their_sounds",
    "several sounds of one name": "test_videos_are_named_after_their_sounds",
    **dict.fromkeys(["several sounds, one of them bad", "several sounds with --landmarks or --save-landmarks"],
                    "test_several_sounds_become_several_videos_and_one_that_fails_stops_none"),
    "poses that turn the head beyond what the avatar's clip shows": "test_poses_are_held_to_what_the_clip_shows",
    "with --no-pose-limit, poses that turn the head far beyond the avatar's own motion":
        "test_poses_far_from_the_own_motion_are_told"}.items()}
ELSEWHERE |= {what: ("tests/talkhead/test_scene.py", test) for what, test in {
    "--size 721, 1280x or nonsense": "test_other_sizes_are_refused",
    **dict.fromkeys(["--background whit", "a background that is only sound", "a background picture that is damaged"],
                    "test_what_is_no_background_is_refused"),
    "a background picture of a phone that was turned": "test_a_phone_picture_stands_upright",
    "shoulders that are cut off in a wider frame": "test_cut_off_shoulders_are_told"}.items()}
ELSEWHERE["poses that put the head far nearer or farther than the clip does"] = (
    "tests/shared/test_pose_range.py", "test_only_extreme_distances_are_changed_and_the_head_stays_in_its_place_of_the_picture")
ELSEWHERE["an orbit that goes beyond what the clip shows"] = (
    "tests/talkhead/test_synthesis.py", "test_an_orbit_tells_where_it_goes_beyond_the_clip")
ELSEWHERE["--fps 0, 121 or nonsense"] = ("tests/shared/media/test_video_output.py", "test_rates_that_no_video_has_are_refused")
MARKS, VERIFY = "tests/talkhead/test_provenance.py", "tests/talkhead/test_verification.py"
ELSEWHERE |= {
    "synth without the extra `provenance`": (MARKS, "test_without_the_extra_one_sentence_says_how_to_get_it"),
    "synth to .mkv": (MARKS, "test_what_cannot_be_signed_stays_as_it_is"),
    "a config folder that cannot be written, a damaged signing.pem": (MARKS, "test_what_cannot_be_signed_stays_as_it_is"),
    "verify of a file that was changed after signing": (VERIFY, "test_one_changed_bit_breaks_the_signature"),
    "verify of less than 2 s": (VERIFY, "test_only_the_metadata_of_others"),
    "verify of no video": (VERIFY, "test_bad_inputs_end_with_2"),
    "--trust of another file": (VERIFY, "test_bad_inputs_end_with_2"),
    "a consent note with a wrong date, name or hash": ("tests/shared/test_consent.py",
                                                       "test_a_wrong_note_is_refused_with_its_value")}
ELSEWHERE["saturated colours"] = ("tests/shared/media/test_video_colors.py",
                                  "test_saturated_colors_come_back_and_the_stream_says_which_they_are")
CHECK, TRAIN = "tests/process_data/test_check.py", "tests/talkhead/test_video_to_avatar.py"
ELSEWHERE |= {
    "check of a video without a face": (CHECK, "test_a_video_that_cannot_be_used_is_a_sentence"),
    "check of two seconds": (CHECK, "test_a_video_that_cannot_be_used_is_a_sentence"),
    "train in a script without a consent note": (TRAIN, "test_without_a_terminal_the_consent_note_is_asked_for_before_any_work"),
    "--no-consent-note beside --consent-who": (TRAIN, "test_options_that_do_not_go_together"),
    "train -o me.zip": (TRAIN, "test_options_that_do_not_go_together"),
    **dict.fromkeys(["train over an avatar, a report or a folder", "train where the work of another video lies",
                     "train where NAME.training holds something else"],
                    (TRAIN, "test_nothing_is_replaced_unasked_and_work_of_another_video_is_not_gone_on_with")),
    "train that was killed": (TRAIN, "test_a_run_that_is_killed_goes_on_and_gives_the_same_avatar")}
ANY_MACHINE, WORKERS = "tests/test_any_machine.py", "tests/process_data/test_workers.py"
ELSEWHERE |= {
    'a package folder and a home folder that cannot be written': (ANY_MACHINE,
        "test_compiled_code_where_neither_the_package_nor_home_can_be_written"),
    'a damaged or unwritable cache of compiled code': (ANY_MACHINE,
        "test_a_cache_that_is_damaged_or_cannot_be_written_is_left_alone"),
    'a container with fewer processors or less memory than its host': (ANY_MACHINE,
        "test_limits_of_control_groups_of_either_version"),
    'a process bound to some processors (taskset, slurm)': (ANY_MACHINE,
        "test_a_bound_process_counts_its_own_processors"),
    'a full disk, a quota or a limit on file size, at any write': (ANY_MACHINE,
        "test_a_full_disk_is_one_sentence_with_the_final_name"),
    'a full disk or too little memory within `talkhead process`': (WORKERS,
        "test_a_machine_that_refuses_does_not_cost_the_work_done_so_far"),
    'an output folder that may not be written': (ANY_MACHINE, "test_what_may_not_be_read_or_written_is_one_sentence"),
    'an input that may not be read': (ANY_MACHINE, "test_what_may_not_be_read_or_written_is_one_sentence"),
    'stdout on a full disk': (ANY_MACHINE, "test_output_that_cannot_be_written_or_that_nobody_reads"),
    'stdout that nobody reads (`… \\| head`), closed streams': (ANY_MACHINE,
        "test_output_that_cannot_be_written_or_that_nobody_reads"),
    'names of up to 255 bytes, with colons, quotes, blanks, line ends, a leading dash, or not in UTF-8': (ANY_MACHINE,
        "test_any_name_that_the_system_takes"),
    'a longer name': (ANY_MACHINE, "test_names_that_are_too_long_are_one_sentence"),
    '`.`, `..` or a folder within it as CLIP': (ANY_MACHINE, "test_the_avatar_lies_beside_a_clip_that_is_named_by_dots"),
    '`/` as CLIP': (ANY_MACHINE, "test_the_avatar_lies_beside_a_clip_that_is_named_by_dots"),
    'an output encoding without the characters (cp1252, ASCII, the C locale)': (ANY_MACHINE,
        "test_output_in_an_encoding_that_lacks_the_characters"),
    '--device mps, xpu, meta or nonsense': (ANY_MACHINE, "test_devices_that_are_not_there"),
    '--device cuda:9': (ANY_MACHINE, "test_devices_that_are_not_there"),
    'another package called shared, chain, cli, … on the path or in the folder': (ANY_MACHINE,
        "test_a_foreign_package_on_the_path_is_named"),
    "another package that wrote over one of talkhead's": (ANY_MACHINE,
        "test_files_that_another_package_wrote_over_ours"),
    'a library or a part of talkhead that is missing': (ANY_MACHINE, "test_what_the_machine_lacks_is_one_sentence"),
    'OpenCV without its contrib modules, as where opencv-python was installed beside opencv-contrib-python': (ANY_MACHINE,
        "test_an_opencv_without_contrib_modules_is_told"),
    'Ctrl-C, SIGTERM, SIGHUP': (ANY_MACHINE, "test_a_stopped_command_cleans_up_and_says_what_can_be_continued"),
    'a killed parent of worker processes': (WORKERS, "test_workers_end_with_their_parent_whatever_ends_it"),
    'no shared memory (/dev/shm)': (WORKERS, "test_without_shared_memory_it_is_one_sentence"),
    'no more processes for this user': (WORKERS, "test_where_no_process_can_be_started_it_is_one_sentence"),
}
ELSEWHERE |= {row: ("tests/process_data/detection/test_people.py", test) for row, test in {
    "two people in the picture": "test_two_people_side_by_side",
    "two people who swap sides at a cut": "test_a_swap_of_sides_is_followed",
    "somebody else is seen where the person is not": "test_another_person_is_a_bad_stretch_and_told",
    "--person middle": "test_a_wrong_person_is_refused",
    "--person 3 of two people": "test_two_people_side_by_side"}.items()}
READING, PEOPLE = "tests/shared/media/test_recordings.py", "tests/process_data/test_recorded_people.py"
ELSEWHERE.update({
    "a clock that does not start at zero (cuts of streams, -copyts, recorders)":
        (READING, "test_time_zero_is_the_start_of_the_file"),
    "sound that begins before the picture, or after it": (READING, "test_tracks_keep_their_distance"),
    "a picture that begins more than half a second after the sound":
        (PEOPLE, "test_frames_without_a_picture_are_told_from_those_without_a_face"),
    "encoder delay of AAC, MP3 and Opus": (READING, "test_encoder_delay_is_taken_off"),
    "Matroska or WebM with sound longer than the picture":
        (PEOPLE, "test_a_file_is_told_to_be_cut_off_only_by_its_own_tracks"),
    "HDR (HLG, PQ, and Dolby Vision with such a base)":
        (READING, "test_high_dynamic_range_looks_as_the_same_picture_in_standard_range"),
    "colours of BT.2020 or Display P3 in standard range":
        (READING, "test_high_dynamic_range_looks_as_the_same_picture_in_standard_range"),
    "BT.601 or BT.709 matrix, full or limited range": (READING, "test_matrix_and_range_are_honoured_as_ffmpeg_does"),
    "a display matrix that mirrors, turns or both": (READING, "test_display_matrices_are_applied_whole"),
    "interlaced video": (READING, "test_interlaced_frames_are_made_whole"),
    "a cover or thumbnail before the video": (READING, "test_a_cover_is_not_the_video"),
    "several video tracks": (READING, "test_of_two_video_tracks_the_larger_is_shown_and_named"),
    "several audio tracks": (READING, "test_the_default_sound_track_is_heard_and_named"),
    "an audio track that cannot be decoded beside one that can": (READING, "test_the_default_sound_track_is_heard_and_named"),
    "no audio track that can be decoded": (READING, "test_the_default_sound_track_is_heard_and_named"),
    "stereo of opposite phase, or with a silent channel": (READING, "test_speech_is_heard_on_whichever_channel_it_is"),
    "speech on the centre of 5.1, or on one of 9, 18 or 32 channels":
        (READING, "test_speech_is_heard_on_whichever_channel_it_is"),
    "a square picture with a small face": (PEOPLE, "test_square_pictures_are_cropped_where_the_face_is_small"),
    "a picture file": (PEOPLE, "test_what_is_no_recording_is_refused"),
    "a song with a cover": (READING, "test_a_cover_is_not_the_video"),
    "a person upside down": (PEOPLE, "test_people_who_do_not_stand_upright_are_refused"),
    "a person lying on the side": (PEOPLE, "test_people_who_do_not_stand_upright_are_refused"),
    "a black end or beginning": (PEOPLE, "test_frames_without_a_picture_are_told_from_those_without_a_face"),
    "lips that never move": (PEOPLE, "test_lips_that_never_move_are_told"),
    "a still picture as a video": (PEOPLE, "test_lips_that_never_move_are_told"),
    "an address (URL)": (PEOPLE, "test_what_is_no_recording_is_refused"),
    "- for standard input": (PEOPLE, "test_what_is_no_recording_is_refused"),
    "a named pipe or a device": (PEOPLE, "test_what_is_no_recording_is_refused"),
    "a name with a colon, a leading dash or one that FFmpeg would take for a protocol": (READING, "test_any_name_is_a_file"),
    "damaged bytes anywhere in the file": ("tests/benchmarks/test_fuzz_media.py", "test_damaged_media_files_are_read_or_refused"),
})
REFUSED = {}  # row -> function (folder) -> arguments of the command, the paths that VIDEO and CLIP stand for
PROVEN = set()
TAKES = {"one frame": 1, "two seconds": 50}
GREY = np.full((128, 128, 3), 120, np.uint8)


def refused(row):
    """The decorated function makes the input of a row that is refused; it is run by the one test of all refusals."""
    def remember(make):
        assert row not in REFUSED
        REFUSED[row] = make
        return make

    return remember


def proves(*rows):
    """The decorated test proves these rows of the page."""
    PROVEN.update(rows)
    return lambda test: test


def pattern(row, **stand_for):
    """The sentence of a row as a regular expression."""
    text = re.escape(TABLE[row][1].replace("\\|", "|")).replace("…", ".+")
    text = re.sub(r"(?<![A-Za-z])N(?![A-Za-z])|(?<=[Nx])N|N(?=xN)", r"[\\d., ]*\\d", text)
    for name, path in stand_for.items():
        text = text.replace(name, re.escape(str(path)))
    return text


def says(row, output, **stand_for):
    assert re.search(pattern(row, **stand_for), output), f"{pattern(row, **stand_for)}\n\nfound\n\n{output}"


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def film(path, frames, *, rate=FPS, times=None, pixels="yuv420p", aspect=None, title=None, sound=None, sound_rate=SAMPLE_RATE,
         layout="mono", codec="aac", sound_times=None, container=None):
    """Write any video: frames (H,W,3) at `rate` or at `times` seconds; sound (n,) the same on all channels, in pieces of 1024
    samples at `sound_times` seconds."""
    frames = list(frames)
    with av.open(str(path), "w", options=container or {}) as out:
        tracks = []
        if frames:
            video = out.add_stream("libx264", rate=rate)
            video.height, video.width, video.pix_fmt = *frames[0].shape[:2], pixels
            video.options = {"preset": "veryfast", "crf": "16", "g": "50"}
            if times is not None:
                video.codec_context.time_base = Fraction(1, 1000)
            if aspect is not None:
                video.codec_context.sample_aspect_ratio = aspect
            tracks.append((video, _pictures(frames, rate, times)))
        if sound is not None:
            audio = out.add_stream(codec, rate=sound_rate, layout=layout)
            tracks.append((audio, _sounds(audio, sound, sound_rate, layout, codec, sound_times)))
        if title:
            out.metadata["title"] = title
        for stream, items in tracks:
            for item in items:
                out.mux(stream.encode(item))
            out.mux(stream.encode(None))
    return path


def _pictures(frames, rate, times):
    for k, rgb in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        frame.pts, frame.time_base = (k, Fraction(1, rate)) if times is None else (round(1000 * times[k]), Fraction(1, 1000))
        yield frame


def _sounds(audio, sound, rate, layout, codec, times):
    whole = av.AudioResampler(format="s16", layout=layout, rate=rate)
    for k, start in enumerate(range(0, len(sound), 1024)):
        data = np.repeat(sound[None, start : start + 1024].astype(np.float32), audio.layout.nb_channels, 0)
        frame = av.AudioFrame.from_ndarray(data, format="fltp", layout=layout)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = start if times is None else round(times[k] * rate)
        yield from whole.resample(frame) if codec.startswith("pcm") else [frame]


def tone(seconds, rate=SAMPLE_RATE, level=0.5):
    return level * np.sin(2 * np.pi * 220 * np.arange(int(seconds * rate)) / rate)


def resampled(sound, rate):
    return np.interp(np.arange(int(len(sound) * rate / SAMPLE_RATE)) * SAMPLE_RATE / rate, np.arange(len(sound)), sound)


def turn_on_playing(path):
    """Set the rotation flag of an .mp4, so that players turn its picture by a quarter clockwise."""
    data = bytearray(path.read_bytes())
    matrix = data.find(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Workers do their jobs in this process: the real ones, which cost seconds to start, are tested in test_pipeline.py."""
    def run_here(self, work, jobs, *_, **__):
        for job in jobs:
            work(*job)

    monkeypatch.setattr(Workers, "run", run_here)


@pytest.fixture(scope="module")
def actor(tmp_path_factory):
    """Frames (110,160,160,3) of the synthetic actor and the sound, (70400,) at 16 kHz."""
    truth = make_actor(tmp_path_factory.mktemp("actor"), size=160, seconds=4.4, quiet=True)
    return np.stack(list(read_video(truth.video))), load_audio(truth.video)[:70400]


def processed(video, folder, *options):
    """What the command prints about a video that can be used, and the clip."""
    result = run("process", video, folder / "clip", *options)
    assert result.exit_code == 0, result.output
    return result.output, Clip(folder / "clip")


# ---------------------------------------------------------------------------------------------------------- the page itself


def test_every_row_of_the_page_is_proven():
    rows = [line[0] for line in LINES if line[0] != "input" and not line[0].startswith("---")]
    assert len(TABLE) == len(rows), "a row stands twice"
    assert set(TABLE) == set(REFUSED) | PROVEN | set(ELSEWHERE)
    assert not set(REFUSED) & PROVEN
    for what, (happens, sentence) in TABLE.items():
        assert happens.split(";")[0].split(":")[0] in ("refused", "warning", "works"), what
        assert happens == "refused" or what not in REFUSED
        assert bool(sentence) == (not happens.startswith("works")), what
    for path, name in ELSEWHERE.values():
        assert f"def {name}(" in (ROOT / path).read_text()


@pytest.mark.parametrize("row", [what for what, (happens, _) in TABLE.items()
                                 if happens == "refused" and what not in {*TAKES, *ELSEWHERE}])
def test_it_is_refused_with_the_sentence_of_the_page(row, tmp_path):
    made = REFUSED[row](tmp_path)
    check_refusal(row, *(made if isinstance(made, tuple) else (made,)), folder=tmp_path)


def check_refusal(row, arguments, stand_for=None, *, folder):
    """Exit code 2, the sentence of the page and nothing else, nothing left behind."""
    before = finished_files(folder)
    result = run(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    if arguments[0] == "process":
        stand_for = {"VIDEO": arguments[1], "CLIP": arguments[2]}
    lines = [line for line in result.output.replace("\r", "\n").splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and "Traceback" not in result.output
    wanted = "Error: " + pattern(row, **(stand_for or {}))
    assert re.fullmatch(wanted, lines[0]), f"{wanted}\n\nfound\n\n{lines[0]}"
    assert finished_files(folder) == before, "something was left behind, or changed"


def finished_files(folder):
    """Files and when they were written, but for decoded frames."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts}


# ------------------------------------------------------------------------------------------------------ videos that are refused


def grey(folder, seconds=4.0, shape=(128, 128), name="grey.mp4", **options):
    frames = [np.full((*shape, 3), 120, np.uint8)] * round(seconds * FPS)
    return film(folder / name, frames, sound=tone(seconds, level=0.1), **options)


def process(video, *options):
    return ["process", video, video.with_name("clip"), *options]


@refused("a file that does not exist")
def _(folder):
    return process(folder / "none.mp4")


@refused("a folder")
def _(folder):
    (folder / "takes").mkdir()
    return process(folder / "takes")


@refused("an empty file")
def _(folder):
    (folder / "empty.mp4").touch()
    return process(folder / "empty.mp4")


@refused("a text file named .mp4")
def _(folder):
    (folder / "text.mp4").write_text("hello")
    return process(folder / "text.mp4")


@refused("an .mp4 cut off before its index")
def _(folder):
    video = grey(folder)
    os.truncate(video, video.stat().st_size // 2)
    return process(video)


@refused("sound alone")
def _(folder):
    return process(film(folder / "sound.m4a", [], sound=tone(1)))


@refused("no audio track")
def _(folder):
    return process(film(folder / "mute.mp4", [GREY] * 10))


@refused("a picture that changes its size")
def _(folder):
    film(folder / "a.ts", [GREY] * 50, times=np.arange(50) / FPS, sound=tone(2))
    film(folder / "b.ts", [np.pad(GREY, ((16, 16), (16, 16), (0, 0)))] * 50, times=2 + np.arange(50) / FPS)
    (folder / "both.ts").write_bytes((folder / "a.ts").read_bytes() + (folder / "b.ts").read_bytes())
    return process(folder / "both.ts")


@refused("time stamps that jump by hours")
def _(folder):
    times = np.append(np.arange(49) / FPS, 40000)
    return process(film(folder / "jump.mkv", [GREY] * 50, times=times, sound=tone(2)))


@refused("a picture of 64x64")
def _(folder):
    return process(grey(folder, shape=(64, 64)))


@refused("no face, square picture")
def _(folder):
    return process(grey(folder))


@refused("no face, wide picture")
def _(folder):
    return process(grey(folder, shape=(128, 192)))


@proves(*TAKES)
@pytest.mark.parametrize("row, count", TAKES.items())
def test_a_short_take_is_refused(row, count, actor, tmp_path):
    frames, sound = actor
    check_refusal(row, process(film(tmp_path / "short.mp4", frames[:count], sound=sound[: count * 640])), folder=tmp_path)


# ------------------------------------------------------------------------------------------------------ CLIP, disk and options


@refused("a finished clip is there")
def _(folder):
    (folder / "clip").mkdir()
    (folder / "clip/clip.json").write_text("{}")
    return process(grey(folder))


@refused("CLIP is a file")
def _(folder):
    (folder / "clip").write_text("mine")
    return process(grey(folder))


@refused("CLIP in a folder that may not be written")
def _(folder):
    if os.geteuid() == 0:
        pytest.skip("nothing is forbidden to root")
    video = grey(folder)
    (folder / "locked").mkdir(mode=0o500)
    return ["process", video, folder / "locked/clip"]


@refused("a full disk")
def _(folder):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    # the name that the video is written under before it is whole, so that FFmpeg itself meets the full disk
    video = grey(folder, rate=30)
    work = work_folder(folder / "clip", run_name(sha256(video), ProcessConfig(), DetectorChoice())) / BUILT
    work.mkdir(parents=True)
    (work / f".video.partial-{os.getpid()}.mp4").symlink_to("/dev/full")
    return process(video)


OPTIONS = {
    "--split train": ("--split", "train"), "--split train=5:1": ("--split", "train=5:1"),
    "--split beyond the end": ("--split", "train=0:90", "--split", "test=500:600"),
    "--split without train": ("--split", "test=0:50"), "--workers 0": ("--workers", "0"),
    "--detector unknown": ("--detector", "unknown"), "--set max_sise=3": ("--set", "max_sise=3"),
    "--set max_size=big": ("--set", "max_size=big"), "--set plate_samples=0": ("--set", "plate_samples=0"),
    "--config that does not exist": ("--config", "none.yaml"), "--landmarker missing.task": ("--landmarker", "missing.task"),
    "--models of a folder without models": ("--models", "."), "--detector fan without the extra": ("--detector", "fan"),
}


def _with(options):
    def make(folder):
        if "fan" in options and find_spec("face_alignment"):
            pytest.skip("face-alignment is installed")
        return process(grey(folder), *options)

    return make


REFUSED.update({row: _with(options) for row, options in OPTIONS.items()})


# ------------------------------------------------------------------------------------------------------------- other commands


@refused("import voca of another folder")
def _(folder):
    return ["import", "voca", folder, folder / "out"]


@refused("import adnerf of another folder")
def _(folder):
    return ["import", "adnerf", folder, folder / "clip"]


def small_clip(folder, frames=60, train=50):
    """A clip folder that is valid in every respect, of grey pictures."""
    clip = Clip(folder / "clip")
    with VideoWriter(clip.video, 32, 32) as video, GrayVideoWriter(clip.labels, 32, 32) as labels:
        for _ in range(frames):
            video.write(GREY[:32, :32])
            labels.write(np.full((32, 32), 3, np.uint8))
    save_landmarks(clip.landmarks, TEMPLATE + np.random.default_rng(0).normal(scale=0.002, size=(frames, 68, 3)))
    save_landmarks(clip.neutral, TEMPLATE[None])
    pose = np.diag([1.0, -1, -1, 1])
    pose[2, 3] = 0.6
    save_array(clip.poses, np.repeat(pose[None], frames, 0))
    save_array(clip.torso_motion, np.repeat([[0.0, 0, 0, 1]], frames, 0))
    save_wav(clip.audio, tone(frames / FPS))
    write_png(clip.background, GREY[:32, :32])
    clip.save_info(ClipInfo("me", "me.mov", "00", 32, 32, frames, (40.0, 40.0, 16.0, 16.0), (0, 0, 32),
                            [Shot(0, frames, "background.png")], split={"train": [(0, train)], "test": [(train, frames)]}))
    return clip


def _told(command, clip, *options):
    return [*command.split(), clip.root, "--device", "cpu", *options], {"CLIP": clip.root}


FEW = ("--set", "steps=1", "--set", "batch=2")


def _landmarks_only(folder):
    clip = small_clip(folder)
    for path in (clip.video, clip.labels, clip.background):
        path.unlink()
    return clip


@refused("stage1 finetune on a clip of import voca")
def _(folder):
    return _told("stage1 finetune", _landmarks_only(folder), *FEW)


@refused("stage2 train on a clip of import voca")
def _(folder):
    return _told("stage2 train", _landmarks_only(folder), *FEW)


@refused("stage2 train on a folder that is no clip")
def _(folder):
    return _told("stage2 train", Clip(folder / "none"))[0], {"CLIP": folder / "none"}


@refused("stage2 train on a clip with a damaged clip.json")
def _(folder):
    clip = small_clip(folder)
    clip.json.write_text(clip.json.read_text()[:100])
    return _told("stage2 train", clip)


@refused("stage2 train on a clip of another version")
def _(folder):
    clip = small_clip(folder)
    clip.json.write_text(json.dumps(json.loads(clip.json.read_text()) | {"format": 99}))
    return _told("stage2 train", clip)


@refused("stage2 train on a clip with a cut-off labels.mkv")
def _(folder):
    clip = small_clip(folder)
    os.truncate(clip.labels, clip.labels.stat().st_size // 2)
    return _told("stage2 train", clip, *FEW)


@refused("stage1 pretrain on a clip with too few frames")
def _(folder):
    clip = small_clip(folder)
    save_landmarks(clip.landmarks, clip.load_landmarks()[:50])
    return _told("stage1 pretrain", clip, "-o", folder / "base.safetensors", *FEW)


@refused("stage1 pretrain on a clip with a short train split")
def _(folder):
    return _told("stage1 pretrain", small_clip(folder, train=20), "-o", folder / "base.safetensors", *FEW)


@refused("stage1 pretrain on a clip with a pickle in landmarks.npy")
def _(folder):
    clip = small_clip(folder)
    np.save(clip.landmarks, np.array([print], dtype=object), allow_pickle=True)
    return _told("stage1 pretrain", clip, "-o", folder / "base.safetensors", *FEW)


# -------------------------------------------------------------------------------------------- odd inputs that work, and warnings


@pytest.mark.slow
@proves("60 frames a second", "a phone video with a rotation flag", "odd width and height", "10 bits a channel, 4:4:4",
        "mono, stereo, 5.1")
def test_a_phone_video_of_everything_unusual(actor, tmp_path):
    frames, sound = actor
    lying = np.full((230, 201, 181, 3), 90, np.uint8)
    lying[:, 25:185, 9:169] = frames[np.arange(230) * FPS // 60]
    sound = sound[: 96 * 640]
    video = film(tmp_path / "phone.mp4", np.rot90(lying, 1, (1, 2)), rate=60, pixels="yuv444p10le", sound=resampled(sound, 48000),
                 sound_rate=48000, layout="5.1")
    turn_on_playing(video)
    info = probe(video)
    assert (info.width, info.height, info.frames_estimate) == (181, 201, 96)
    output, clip = processed(video, tmp_path)
    assert clip.info.frames == 96 and not clip.info.excluded and output.count("warning: ") == 1  # only that it is short
    assert clip.info.width == clip.info.height and clip.info.width % 2 == 0
    assert clip.info.crop[0] + clip.info.crop[2] <= 181 and clip.info.crop[1] + clip.info.crop[2] <= 201
    pixels = project(clip.load_landmarks(), clip.load_poses(), clip.info.intrinsics)
    assert (pixels[:, 8, 1] > pixels[:, 27, 1] + 20).all()  # the chin is below the nose
    made = clip.load_audio()
    assert np.std(made) == pytest.approx(np.std(sound), rel=0.03)
    assert np.corrcoef(made[8000:40000], sound[8000:40000])[0, 1] > 0.95


@pytest.mark.slow
@proves("a variable frame rate", "a first frame at 0.08 s with sound from zero", "clipped sound", "a cut", "8 kHz, 96 kHz")
def test_a_cut_recording_of_variable_rate(actor, tmp_path):
    frames, sound = actor[0], actor[1][:64000]
    kept = np.flatnonzero(np.arange(100) % 3 != 1)
    pictures = [frames[k] if k < 50 else frames[k][:, ::-1] // 2 + 60 for k in kept]
    video = film(tmp_path / "screen.mkv", pictures, times=0.08 + kept / FPS, sound=resampled(np.clip(40 * sound, -1, 1), 8000),
                 sound_rate=8000, codec="pcm_s16le")
    output, clip = processed(video, tmp_path)
    assert clip.info.frames == 102 and len(clip.load_audio()) == 102 * 640
    assert [shot.start for shot in clip.info.shots] == [0, 51]
    says("clipped sound", output)
    says("a cut", output)
    shown = np.stack(list(clip.frames())).astype(float)
    for k in kept[::7]:
        wanted = pictures[int(np.flatnonzero(kept == k)[0])]
        assert np.abs(shown[k + 2] - wanted).mean() < 3, f"frame {k} is not shown at {k} + 2"
    assert np.abs(shown[0] - frames[0]).mean() < 3


@pytest.mark.slow
@proves("an .mp4 cut off behind its index", "silent sound", "the face leaves the picture", "the face is away for a while")
def test_a_recording_that_breaks_off(actor, tmp_path):
    frames, sound = actor
    pictures = []
    for k, frame in enumerate(frames):
        away = max(0, 20 - k) * 7
        pictures.append(np.concatenate([np.repeat(frame[:, :1], away, 1), frame[:, : 160 - away]], 1))
    video = film(tmp_path / "broken.mp4", pictures, sound=0.001 * sound, container={"movflags": "faststart"})
    os.truncate(video, int(0.96 * video.stat().st_size))
    output, clip = processed(video, tmp_path)
    assert 95 <= clip.info.frames < 109
    reasons = [(bad.reason, bad.start) for bad in clip.info.excluded]
    assert ("no face", 0) in reasons and any(reason == "the face leaves the picture" for reason, _ in reasons)
    assert max(bad.stop for bad in clip.info.excluded) <= 20
    for row in ("silent sound", "the face leaves the picture", "the face is away for a while"):
        says(row, output)
    says("an .mp4 cut off behind its index", output)


@pytest.mark.slow
@proves("a second face all the time")
def test_two_people(actor, tmp_path):
    frames, sound = actor
    both = np.full((80, 240, 240, 3), 90, np.uint8)
    both[:, 40:200, 20:120], both[:, 40:200, 120:220] = frames[:80, :, 30:130], frames[:80, :, ::-1][:, :, 30:130]
    output, clip = processed(film(tmp_path / "two.mp4", both, sound=sound), tmp_path)
    says("a second face all the time", output)


@proves("a second face for a while", "a hand at the mouth")
def test_incidents_are_bad_stretches():
    pixels = np.zeros((200, 68, 2)) + 150
    pixels[:, [36, 45], 0] = 130, 170
    pixels[:, 8, 1], pixels[:, 27, 1] = 180, 120
    poses = np.repeat(np.diag([1.0, -1, -1, 1])[None], 200, 0)
    faces = np.array([[k, 120, 110, 180, 190] for k in range(0, 200, 10)] + [[50, 10, 110, 70, 190]], float)
    hands = np.array([[100, 140, 140, 160, 160], [150, 0, 0, 20, 20]], float)
    none = np.zeros(200, bool)
    bad = quality.find_excluded(none, ~none, poses, pixels, faces, hands, ProcessConfig(), others=none)
    assert [(b.start, b.stop, b.reason) for b in bad] == [(41, 60, "a second face"), (96, 105, "a hand at the mouth")]
    told = "\n".join(quality.recording_warnings([], bad, None, False, np.ones(10) * 0.1, pixels, faces, 300))
    says("a second face for a while", told)
    says("a hand at the mouth", told)


def ramp(count):
    """Frames (96,96,3) of ever lighter grey."""
    return [np.full((96, 96, 3), 240 * k // count, np.uint8) for k in range(count)]


def places(path, count, **options):
    """Which frames of a ramp of `count` a video shows, one after the other."""
    return [frame.mean() * count / 240 for frame in read_video(path, **options)]


@proves("12 frames a second")
def test_frames_of_a_slow_video_are_repeated(tmp_path):
    film(tmp_path / "slow.mp4", ramp(24), rate=12)
    assert places(tmp_path / "slow.mp4", 24) == pytest.approx([k / FPS * 12 for k in range(50)], abs=0.7)


@proves("a transport stream (.ts, .mts) whose clock starts anywhere")
def test_a_transport_stream_starts_at_its_own_zero(tmp_path):
    times = 36000 + np.arange(80) / FPS
    film(tmp_path / "camcorder.ts", ramp(80), times=times, sound=tone(3.2), sound_times=36000.4 + np.arange(50) * 0.064)
    assert places(tmp_path / "camcorder.ts", 80) == pytest.approx(range(80), abs=0.9)
    assert places(tmp_path / "camcorder.ts", 80, start=61, stop=63) == pytest.approx([61, 62], abs=0.9)
    sound = load_audio(tmp_path / "camcorder.ts")
    assert len(sound) == pytest.approx(3.6 * SAMPLE_RATE, abs=1500)
    assert np.abs(sound[:5000]).max() < 0.01 < 0.2 < np.abs(sound[8000:16000]).max()


@proves("damaged bytes within")
def test_a_damaged_packet_does_not_end_the_video(tmp_path):
    rng = np.random.default_rng(0)
    frames = [np.clip(frame + rng.normal(0, 8, frame.shape), 0, 255).astype(np.uint8) for frame in ramp(100)]
    video = film(tmp_path / "hurt.mkv", frames, sound=tone(4), codec="pcm_s16le")
    with av.open(str(video)) as whole:
        packets = [bytes(packet) for packet in whole.demux(whole.streams.video[0]) if packet.size]
    data = video.read_bytes()
    for packet in packets[40:43]:
        assert packet in data
        data = data.replace(packet, b"\xff" * len(packet))
    video.write_bytes(data)
    shown = places(video, 100)
    assert len(shown) == 100 and np.abs(np.subtract(shown, range(100)))[55:].max() < 4
    assert len(load_audio(video)) == 4 * SAMPLE_RATE


@proves("pixels that are not square (HDV, DV)")
def test_pixels_become_square(tmp_path):
    wide = np.zeros((108, 144, 3), np.uint8)
    wide[:, 36:108] = 200
    for name, aspect, shape in (("hdv.mp4", Fraction(4, 3), (108, 192)), ("tall.mp4", Fraction(2, 3), (162, 144))):
        video = film(tmp_path / name, [wide] * 3, aspect=aspect)
        assert (probe(video).height, probe(video).width) == shape
        frame = next(read_video(video))
        assert frame.shape[:2] == shape and frame.mean() == pytest.approx(100, abs=3)


@proves("a title that is not UTF-8")
def test_metadata_of_any_encoding(tmp_path):
    video = film(tmp_path / "old.mp4", ramp(5), title="TITLETITLE")
    video.write_bytes(video.read_bytes().replace(b"TITLETITLE", b"Caf\xe9 M\xfcll"[:10].ljust(10)))
    assert len(places(video, 5)) == 5


@pytest.mark.parametrize("rate, layout", [(8000, "mono"), (96000, "mono"), (44100, "stereo"), (48000, "5.1")])
def test_any_sound_is_as_loud_as_before(tmp_path, rate, layout):
    film(tmp_path / "sound.mkv", [], sound=tone(2, rate), sound_rate=rate, layout=layout, codec="pcm_s16le")
    sound = load_audio(tmp_path / "sound.mkv")
    assert len(sound) == pytest.approx(2 * SAMPLE_RATE, abs=40)
    np.testing.assert_allclose(sound[2000:30000], tone(2)[2000:30000], atol=0.02)


@proves("sound that starts late or has a gap")
def test_gaps_in_the_sound_are_silence(tmp_path):
    pieces = np.arange(30) * 0.064
    film(tmp_path / "gap.mkv", [], sound=np.full(30 * 1024, 0.5), codec="pcm_s16le",
         sound_times=0.4 + pieces + np.where(np.arange(30) >= 15, 0.7, 0))
    sound = load_audio(tmp_path / "gap.mkv")
    edges = np.flatnonzero(np.diff(np.abs(sound) > 0.25)) / SAMPLE_RATE
    np.testing.assert_allclose(edges, [0.96, 1.66], atol=0.003)  # nothing but sound is in the file: time zero is its start
    assert len(sound) / SAMPLE_RATE == pytest.approx(2.62, abs=0.005)


@proves("sound that changes its rate or channels")
def test_sound_of_two_forms(tmp_path):
    film(tmp_path / "a.ts", [], sound=tone(2, 48000), sound_rate=48000, layout="stereo", codec="mp2")
    film(tmp_path / "b.ts", [], sound=tone(2, 44100), sound_rate=44100, codec="mp2", sound_times=2 + np.arange(87) * 1024 / 44100)
    (tmp_path / "both.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    sound = load_audio(tmp_path / "both.ts")
    assert len(sound) == pytest.approx(4 * SAMPLE_RATE, abs=2000)
    for part in (sound[4000:28000], sound[36000:60000]):
        assert np.std(part) == pytest.approx(0.5 / 2**0.5, rel=0.03)


@proves("samples that are no finite numbers")
def test_samples_that_are_no_numbers(tmp_path):
    samples = np.full(16000, 0.25, "<f4")
    samples[100:200], samples[300], samples[400], samples[500] = np.nan, np.inf, -np.inf, 3
    head = struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", 36 + samples.nbytes, b"WAVEfmt ", 16, 3, 1, SAMPLE_RATE, 4 * SAMPLE_RATE, 4,
                       32, b"data", samples.nbytes)
    (tmp_path / "float.wav").write_bytes(head + samples.tobytes())
    sound = load_audio(tmp_path / "float.wav")
    np.testing.assert_allclose(sound[[50, 150, 300, 400, 500, 1000]], [0.25, 0, 1, -1, 1, 0.25], atol=1e-6)


@proves("sound shorter than the picture")
def test_short_sound_is_followed_by_silence(tmp_path):
    sound = load_sound(film(tmp_path / "short.mkv", ramp(50), sound=tone(1), codec="pcm_s16le"), 50)
    assert len(sound) == 50 * 640 and np.abs(sound[16100:]).max() == 0 < np.abs(sound[:16000]).max()
