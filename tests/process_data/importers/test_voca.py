import json
import pickle

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.spatial.transform import Rotation

import cli
from process_data.actor.identity import make_identity
from process_data.actor.proportions import neutral_landmarks
from process_data.importers.flame68 import FLAME68, FLAME_VERTICES, check_face, head_frame, load_embedding, read_ply
from process_data.importers.voca import find_sentences, import_voca, resample, to_head_space
from shared.clip import Clip
from shared.errors import TalkheadError
from shared.landmarks import JAW, LIPS_OUTER, lip_opening
from shared.media.audio_io import save_wav

FRAMES = 121  # two seconds and one frame at 60 a second
TRIANGLES = np.stack([FLAME68, np.roll(FLAME68, 1), np.roll(FLAME68, 2)], 1)
LOWER = [*JAW[4:13], *LIPS_OUTER[7:], 65, 66, 67]
# a mesh space of another orientation, unit and place
TURN = Rotation.from_euler("XYZ", [20, -35, 10], degrees=True).as_matrix()


def face(seed=0):
    """Neutral landmarks (68,3) metres in head space."""
    return neutral_landmarks(make_identity(seed)).astype(float).reshape(68, 3)


def opening(time):
    """Metres by which the jaw is lowered: closed for half a second, then talking."""
    return np.where(time < 0.5, 0, 0.006 * np.sin(2 * np.pi * 1.0 * (time - 0.5)) ** 2)


def talk(time, seed=0):
    rows = np.repeat(face(seed)[None], len(time), 0)
    rows[:, LOWER, 1] -= opening(time)[:, None]
    return rows


def meshes(rows):
    """Landmarks (T,68,3) in head space -> meshes (T,5023,3) in their own space, all other vertices behind the head."""
    rng = np.random.default_rng(0)
    out = np.repeat(rng.uniform(-0.1, 0.1, (FLAME_VERTICES, 3))[None] - [0, 0, 0.3], len(rows), 0)
    out[:, FLAME68] = rows
    return 0.8 * out @ TURN.T + [0.3, -0.2, 1.5]


def write_ply(path, vertices, order="binary_little_endian"):
    header = (f"ply\nformat {order} 1.0\ncomment made by a test\nelement vertex {len(vertices)}\nproperty float x\n"
              "property float y\nproperty float z\nproperty uchar red\nelement face 68\n"
              "property list uchar int vertex_indices\nend_header\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    if order == "ascii":
        lines = [f"{x:.7f} {y:.7f} {z:.7f} 9" for x, y, z in vertices] + [f"3 {a} {b} {c}" for a, b, c in TRIANGLES]
        path.write_text(header + "\n".join(lines) + "\n")
        return
    sign = "<" if "little" in order else ">"
    rows = np.zeros(len(vertices), [("v", sign + "f4", 3), ("red", "u1")])
    rows["v"] = vertices
    faces = np.zeros(len(TRIANGLES), [("n", "u1"), ("v", sign + "i4", 3)])
    faces["n"], faces["v"] = 3, TRIANGLES
    path.write_bytes(header.encode() + rows.tobytes() + faces.tobytes())


def write_sound(path, seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(22050 * seconds)) / 22050
    save_wav(path, 0.2 * np.sin(2 * np.pi * 220 * time) * (opening(time) > 0), 22050)


@pytest.fixture
def vocaset(tmp_path):
    """Two speakers, three sentences, one of them without sound."""
    root = tmp_path / "VOCASET"
    time = np.arange(FRAMES) / 60
    for seed, subject in enumerate(("FaceTalk_A_TA", "FaceTalk_B_TA")):
        for t, mesh in enumerate(meshes(talk(time, seed))):
            write_ply(root / "unposedcleaneddata" / subject / "sentence01" / f"sentence01.{t + 1:06d}.ply", mesh)
        write_sound(root / "audio" / subject / "sentence01.wav", FRAMES / 60)
    write_ply(root / "unposedcleaneddata/FaceTalk_B_TA/sentence02/sentence02.000001.ply", mesh)
    return root


@pytest.mark.slow
def test_meshes_become_clips_that_stage1_learns_from(vocaset, tmp_path):
    out = tmp_path / "clips"
    result = CliRunner().invoke(cli.cli, ["import", "voca", str(vocaset), str(out)])
    assert result.exit_code == 0, result.output
    assert "2 clip(s) made, 0 there before, 1 sentence(s) left out" in result.output
    assert "sentence02.wav does not exist" in result.output
    clip = Clip(out / "FaceTalk_A_TA_sentence01")
    landmarks = clip.load_landmarks()
    assert landmarks.dtype == np.float32 and clip.info.frames == len(landmarks) == 51 == len(clip.load_audio()) / 640
    time = np.arange(51) / 25
    lean = head_frame(face())[1]  # the synthetic face's own axes lean a little otherwise
    assert np.abs(landmarks - talk(time) @ lean.T).max() < 2e-4
    assert np.allclose(clip.load_neutral()[0, [36, 45]], [[-0.045, 0, 0], [0.045, 0, 0]], atol=1e-6)
    assert np.abs(lip_opening(landmarks) - lip_opening(clip.load_neutral()) - opening(time)).max() < 2e-4
    assert np.ptp(clip.load_poses(), axis=0).max() == 0 and np.all(clip.load_torso_motion() == [0, 0, 0, 1])
    assert "no video" in clip.info.warnings[0]

    before = clip.landmarks.stat().st_mtime_ns
    assert import_voca(vocaset, out, quiet=True).kept == ["FaceTalk_A_TA_sentence01", "FaceTalk_B_TA_sentence01"]
    assert clip.landmarks.stat().st_mtime_ns == before
    assert len(import_voca(vocaset, out, overwrite=True, quiet=True).made) == 2
    assert clip.landmarks.stat().st_mtime_ns > before

    model = tmp_path / "base.safetensors"
    arguments = ["stage1", "pretrain", *map(str, sorted(out.iterdir())), "-o", str(model), "--device", "cpu"]
    result = CliRunner().invoke(cli.cli, [*arguments, "--set", "steps=2", "--set", "support_points=320", "--set", "batch=2"])
    assert result.exit_code == 0, result.output
    assert model.is_file()
    assert CliRunner().invoke(cli.cli, ["inspect", str(clip.root)]).exit_code == 0


def test_lost_meshes_are_filled_in_and_a_template_is_the_neutral(vocaset, tmp_path):
    folder = vocaset / "unposedcleaneddata/FaceTalk_A_TA/sentence01"
    for number in (1, 2, 61, 62):
        (folder / f"sentence01.{number:06d}.ply").unlink()
    smiling = face()
    smiling[[48, 54]] += [0, 0.004, 0]
    write_ply(vocaset / "templates/FaceTalk_A_TA.ply", meshes(smiling[None])[0] + [0.01, 0.02, 0.03])
    done = import_voca(vocaset, tmp_path / "clips", quiet=True)
    assert "FaceTalk_A_TA_sentence01: 4 of 121 meshes are missing; filled in from their neighbours" in done.warnings
    clip = Clip(tmp_path / "clips/FaceTalk_A_TA_sentence01")
    time = np.arange(51) / 25
    moved = clip.load_landmarks() - clip.load_neutral()
    assert np.abs(moved[:, 66, 1] + opening(time)).max() < 4e-4
    assert np.allclose(moved[:, 48, 1], -0.004, atol=2e-4)


def test_vertex_arrays_are_read(vocaset, tmp_path):
    root, rows = tmp_path / "faceformer", meshes(talk(np.arange(FRAMES) / 60))
    (root / "vertices_npy").mkdir(parents=True)
    np.save(root / "vertices_npy/FaceTalk_A_TA_sentence01.npy", rows.reshape(FRAMES, -1).astype(np.float32))
    write_sound(root / "wav/FaceTalk_A_TA_sentence01.wav", FRAMES / 60)
    import_voca(root, tmp_path / "a", quiet=True)
    import_voca(vocaset, tmp_path / "b", quiet=True)
    a, b = (Clip(tmp_path / name / "FaceTalk_A_TA_sentence01").load_landmarks() for name in "ab")
    assert np.abs(a - b).max() < 1e-6
    with pytest.raises(TalkheadError, match="lasts 2.02 s and the 121 meshes 4.03 s at 30 frames a second.*--fps"):
        import_voca(root, tmp_path / "c", fps=30, quiet=True)
    np.save(root / "vertices_npy/FaceTalk_A_TA_sentence01.npy", np.zeros((5, 300)))
    with pytest.raises(TalkheadError, match=r"expected FLAME vertices \(frames, 15069\), found \(5, 300\)"):
        import_voca(root, tmp_path / "c", quiet=True)


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_in_every_order(tmp_path, order):
    vertices = meshes(face()[None])[0]
    write_ply(tmp_path / "mesh.ply", vertices, order)
    assert np.abs(read_ply(tmp_path / "mesh.ply") - vertices).max() < 1e-6
    data = (tmp_path / "mesh.ply").read_bytes()
    (tmp_path / "cut.ply").write_bytes(data[: len(data) // 3])
    with pytest.raises(TalkheadError, match="cut.ply: the file ends or breaks before its 5023 vertices"):
        read_ply(tmp_path / "cut.ply")


def test_wrong_files_are_named(tmp_path):
    write_ply(tmp_path / "small.ply", np.zeros((100, 3)))
    with pytest.raises(TalkheadError, match="expected a mesh of FLAME's 5023 vertices, found 100"):
        read_ply(tmp_path / "small.ply")
    (tmp_path / "text.ply").write_text("no mesh")
    with pytest.raises(TalkheadError, match="text.ply is not a PLY mesh"):
        read_ply(tmp_path / "text.ply")
    with pytest.raises(TalkheadError, match="nowhere is no folder"):
        find_sentences(tmp_path / "nowhere")
    with pytest.raises(TalkheadError, match="no meshes found; expected unposedcleaneddata"):
        find_sentences(tmp_path)
    (tmp_path / "subj_seq_to_idx.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(TalkheadError, match="whose index is a pickle"):
        find_sentences(tmp_path)


def test_resampling_keeps_speech_stops_aliases_and_delays_nothing():
    time = np.arange(600) / 60
    for rate, kept in ((1.0, 1.0), (4.0, 1.0), (8.0, 1.0), (20.0, 0.0), (28.0, 0.0)):
        wave = np.sin(2 * np.pi * rate * time)[:, None]
        out = resample(wave, 60)
        assert len(out) == 250
        ticks = np.arange(len(out)) / 25
        middle = slice(25, -25)
        assert np.abs(out[middle, 0] - kept * np.sin(2 * np.pi * rate * ticks[middle])).max() < 0.03, rate
    assert np.allclose(resample(np.full((61, 2, 3), 0.7), 60), 0.7, atol=1e-3)
    assert len(resample(np.zeros((61, 1)), 60)) == 26 and len(resample(np.zeros((60, 1)), 60)) == 25
    assert np.array_equal(resample(wave, 25), wave)


def test_a_mirrored_or_shuffled_mesh_is_no_face():
    landmarks, neutral = to_head_space(talk(np.arange(20) / 25))
    check_face(neutral[0], "mesh")
    mirrored = talk(np.arange(20) / 25) * [-1, 1, 1]
    with pytest.raises(TalkheadError, match="landmarks are no face"):
        check_face(to_head_space(mirrored)[1][0], "mesh")
    shuffled = face()[np.random.default_rng(1).permutation(68)]
    with pytest.raises(TalkheadError, match="in FLAME's order"):
        check_face(to_head_space(np.repeat(shuffled[None], 5, 0))[1][0], "mesh")


def test_own_embeddings(tmp_path):
    vertices = meshes(face()[None])[0]
    write_ply(tmp_path / "mesh.ply", vertices)
    numbers = FLAME68.copy()
    numbers[30] = 7
    (tmp_path / "ids.json").write_text(json.dumps(numbers.tolist()))
    assert np.allclose(load_embedding(tmp_path / "ids.json", None).points(vertices), vertices[numbers])
    np.save(tmp_path / "inner.npy", numbers[17:])
    assert np.allclose(load_embedding(tmp_path / "inner.npy", None).points(vertices), vertices[numbers])
    weights = np.tile([0.5, 0.3, 0.2], (68, 1))
    np.savez(tmp_path / "triangles.npz", full_lmk_faces_idx=np.arange(68)[None], full_lmk_bary_coords=weights[None])
    points = load_embedding(tmp_path / "triangles.npz", tmp_path / "mesh.ply").points(vertices)
    a, b, c = (vertices[TRIANGLES[:, k]] for k in range(3))
    assert np.allclose(points, 0.5 * a + 0.3 * b + 0.2 * c)
    with pytest.raises(TalkheadError, match="only the PLY meshes have"):
        load_embedding(tmp_path / "triangles.npz", None)
    np.save(tmp_path / "object.npy", np.array({"a": 1}), allow_pickle=True)
    with pytest.raises(TalkheadError, match="pickled files are never loaded"):
        load_embedding(tmp_path / "object.npy", None)
    (tmp_path / "few.json").write_text("[1, 2, 3]")
    with pytest.raises(TalkheadError, match=r"expected 68 landmarks, or the 51 without the jaw, found \(3,\)"):
        load_embedding(tmp_path / "few.json", None)
