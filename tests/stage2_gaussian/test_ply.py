"""The head as a 3DGS .ply and back."""

import re
from copy import deepcopy

import numpy as np
import pytest
import torch

from shared.avatar import Avatar
from shared.camera import matrix_from_quaternion, pose_matrix
from shared.errors import TalkheadError
from shared.files import write_json
from shared.landmarks import save_array
from stage2_gaussian.checkpoint import load_head, save_head
from stage2_gaussian.head import LARGEST, Head
from stage2_gaussian.ply import (
    C0,
    NEEDED,
    PlyGaussians,
    canonical_gaussians,
    match,
    posed_gaussians,
    read_ply,
    replace_splats,
    write_ply,
)
from stage2_gaussian.render import render_head
from talkhead.splat_file import export_head, import_head

CAMERA, SIZE = (160.0, 160.0, 32.0, 32.0), 64
POSE = torch.from_numpy(pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0.02, 0.8])))
PROPERTIES = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2",
              "rot_0", "rot_1", "rot_2", "rot_3"]


@pytest.fixture
def head(face) -> Head:
    """200 splats, the first 80 of them with a random basis, some larger than may be and some with negative colours."""
    g = torch.Generator().manual_seed(0)
    neutral = torch.from_numpy(face)
    means = neutral[torch.randint(68, (200,), generator=g)] + 0.004 * torch.randn(200, 3, generator=g)
    made = Head(neutral, means, torch.full((200,), 0.004), torch.rand(200, 3, generator=g), moving=80, rank=6, hidden=16,
                pose_rank=2)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter is not made.positions:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=g))
        made.rotations.mul_(3)
        made.log_scales[5] = LARGEST + 1
        made.positions[7] = made.positions[90]  # two at one place
        made.blend.basis.copy_(made.blend.basis.half())
        made.shading.basis.copy_(made.shading.basis.half())
    return made.requires_grad_(False)


@pytest.fixture
def avatar(head, tmp_path) -> Avatar:
    made = Avatar(tmp_path / "me.avatar")
    write_json(made.json, {"name": "me", "width": SIZE, "height": SIZE, "intrinsics": CAMERA, "fps": 25, "format": 1})
    save_array(made.poses, POSE.numpy()[None])
    save_array(made.motion, np.zeros((1, 4)))
    save_head(made.stage2, head, {"steps": 3})
    return made


def picture(head, seed=0):
    landmarks = head.code.centres + 0.004 * torch.randn(68, 3, generator=torch.Generator().manual_seed(seed))
    return render_head(head, landmarks[None], POSE[None], CAMERA, SIZE, SIZE)


def by_hand(path):
    """{property: column} with nothing of the package: header lines and little-endian floats."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex "))
    table = np.frombuffer(body, "<f4").reshape(count, len(names))
    return names, dict(zip(names, table.T))


def rewrite(source, target, change):
    """Read a file by hand, let `change` edit its columns, write it again in their order."""
    names, columns = by_hand(source)
    columns = {name: column.copy() for name, column in columns.items()}
    columns = change(columns) or columns
    write_table(target, columns)


def write_table(target, columns, kind="float", form="binary_little_endian", dtype="<f4"):
    rows = len(next(iter(columns.values())))
    lines = ["ply", f"format {form} 1.0", f"element vertex {rows}", *(f"property {kind} {name}" for name in columns),
             "end_header", ""]
    target.write_bytes("\n".join(lines).encode() + np.stack(list(columns.values()), 1).astype(dtype).tobytes())


def test_the_file_is_what_viewers_expect(head, tmp_path):
    write_ply(tmp_path / "head.ply", canonical_gaussians(head))
    names, value = by_hand(tmp_path / "head.ply")
    assert names == PROPERTIES
    x, y, z = head.positions.T.numpy()
    np.testing.assert_array_equal([value["x"], value["y"], value["z"]], [-x, -y, z])
    for k in range(3):
        np.testing.assert_allclose(0.5 + 0.28209479177387814 * value[f"f_dc_{k}"], head.colors[:, k], atol=1e-6)
        np.testing.assert_array_equal(value[f"scale_{k}"], head.log_scales[:, k].clamp_max(LARGEST))
    np.testing.assert_array_equal(value["opacity"], head.opacities)
    quats = torch.tensor(np.stack([value[f"rot_{k}"] for k in range(4)], 1))
    assert torch.allclose(quats.norm(dim=1), torch.ones(200), atol=1e-6)
    turned = torch.diag(torch.tensor([-1.0, -1, 1])) @ matrix_from_quaternion(head.rotations)
    assert torch.allclose(matrix_from_quaternion(quats), turned, atol=1e-5)


def test_there_and_back_changes_nothing(avatar, tmp_path):
    assert export_head(avatar, tmp_path / "head.ply") == 200
    changes, warnings, file = import_head(avatar, tmp_path / "head.ply", tmp_path / "again.avatar")
    assert changes == (200, 0, 0, 0) and warnings == [] and file == tmp_path / "again.avatar"
    again = load_head(Avatar(file).stage2, "cpu")
    before = load_head(avatar.stage2, "cpu")
    for name, tensor in before.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert torch.equal(picture(again), picture(before))
    assert Avatar(file).info.name == "me" and Avatar(file).load_motion()[0].shape == (1, 4, 4)


def test_a_shuffled_file_with_noise_renders_the_same(head, tmp_path):
    write_ply(tmp_path / "head.ply", canonical_gaussians(head))
    order = np.random.default_rng(0).permutation(200)
    rewrite(tmp_path / "head.ply", tmp_path / "edited.ply",
            lambda c: {name: column[order] * np.float32(1 + 1e-7) for name, column in sorted(c.items())})
    edited = deepcopy(head)
    assert replace_splats(edited, read_ply(tmp_path / "edited.ply")[0]) == (200, 0, 0, 0)
    assert torch.equal(picture(edited), picture(head))


def test_editors_that_write_doubles_or_big_endian_are_read(head, tmp_path):
    write_ply(tmp_path / "head.ply", canonical_gaussians(head))
    _, columns = by_hand(tmp_path / "head.ply")
    write_table(tmp_path / "double.ply", columns, "double", dtype="<f8")
    write_table(tmp_path / "big.ply", columns, "float32", "binary_big_endian", ">f4")
    for name in ("double.ply", "big.ply"):
        for got, expected in zip(read_ply(tmp_path / name)[0], canonical_gaussians(head)):
            np.testing.assert_allclose(got, expected, atol=1e-6)


def test_deleted_recoloured_moved_and_added_splats(head, tmp_path):
    write_ply(tmp_path / "head.ply", canonical_gaussians(head))

    def edit(c):
        c["f_dc_0"][20] += 1
        c["scale_1"][100] -= 0.5
        c["x"][150], c["y"][150], c["z"][150] = c["x"][3] + 1e-4, c["y"][3], c["z"][3]  # a still one beside a moving one
        keep = np.flatnonzero(~np.isin(np.arange(200), [0, 1, 120]))
        added = [10, 199]
        c["opacity"] = np.concatenate([c["opacity"][keep], c["opacity"][added] - 1])
        c["y"] = np.concatenate([c["y"][keep], c["y"][added] + np.float32(2e-5)])
        return {name: column if len(column) == 199 else np.concatenate([column[keep], column[added]])
                for name, column in c.items()}

    rewrite(tmp_path / "head.ply", tmp_path / "edited.ply", edit)
    edited = deepcopy(head)
    changes = replace_splats(edited, read_ply(tmp_path / "edited.ply")[0])
    assert changes == (194, 2, 3, 4)  # gone: 0, 1, 120 and 150, which stands for 3 now
    # 78 of the 80 are left, and 3 and 10 have a second splat that moves as they do
    assert edited.blend.basis.shape == (6, 80, 13) and edited.shading.basis.shape == (2, 199, 3)
    order = [2, 3, 3, *range(4, 11), 10, *range(11, 80)]
    assert torch.equal(edited.blend.basis, head.blend.basis[:, order])
    still = [k for k in range(80, 200) if k not in (120, 150)] + [199]
    assert torch.equal(edited.shading.basis, head.shading.basis[:, order + still])
    recoloured = order.index(20)
    assert torch.allclose(edited.colors[recoloured], head.colors[20] + torch.tensor([C0, 0, 0]), atol=1e-6)
    assert torch.equal(edited.positions[recoloured], head.positions[20])
    assert torch.equal(edited.rotations[recoloured], head.rotations[20])
    assert torch.isfinite(picture(edited)).all()


def test_an_added_splat_moves_with_its_neighbour(head):
    whole = canonical_gaussians(head)
    one = PlyGaussians(*(value[[30]] for value in whole))
    near = one._replace(means=one.means + np.float32(1e-5))
    edited = deepcopy(head)
    replace_splats(edited, PlyGaussians(*(np.concatenate(pair) for pair in zip(whole, near))))
    landmarks = head.code.centres[None] + 0.003
    means = edited(landmarks, POSE[None]).means[0]
    k = int((edited.positions == torch.from_numpy(near.means)).all(1).nonzero()[0, 0])
    assert torch.allclose(means[k], head(landmarks, POSE[None]).means[0, 30], atol=3e-5)


def test_splats_at_one_place_keep_their_own_basis(head):
    whole = canonical_gaussians(head)
    np.testing.assert_array_equal(match(whole, whole), np.arange(200))
    order = np.random.default_rng(1).permutation(200)
    np.testing.assert_array_equal(match(PlyGaussians(*(value[order] for value in whole)), whole), order)


def test_an_expression_is_exported_as_it_looks(head, tmp_path):
    """The posed splats at rest in another head give the picture of the head with that expression."""
    landmarks = (head.code.centres + 0.004 * torch.randn(68, 3, generator=torch.Generator().manual_seed(0)))
    seen = posed_gaussians(head, landmarks.numpy(), POSE.numpy())
    write_ply(tmp_path / "head.ply", seen)
    gaussians = read_ply(tmp_path / "head.ply")[0]
    still = Head(head.code.centres, torch.from_numpy(gaussians.means), torch.ones(200), torch.from_numpy(gaussians.colors),
                 moving=1, rank=5, hidden=2, pose_rank=1).requires_grad_(False)
    still.log_scales.copy_(torch.from_numpy(gaussians.log_scales))
    still.rotations.copy_(torch.from_numpy(gaussians.quats))
    still.opacities.copy_(torch.from_numpy(gaussians.opacities))
    shown = render_head(still, head.code.centres[None], POSE[None], CAMERA, SIZE, SIZE)
    assert torch.allclose(shown, picture(head), atol=2e-4)


def test_an_exported_expression_is_not_imported(avatar, tmp_path, face):
    export_head(avatar, tmp_path / "smile.ply", landmarks=face, frame="with the expression of row 0")
    with pytest.raises(TalkheadError, match="holds the head with an expression; export it without --landmarks"):
        import_head(avatar, tmp_path / "smile.ply", overwrite=True)


def test_import_into_the_avatar_itself_keeps_what_was_there(avatar, tmp_path):
    export_head(avatar, tmp_path / "head.ply")
    before = avatar.stage2.read_bytes()
    rewrite(tmp_path / "head.ply", tmp_path / "edited.ply", lambda c: {n: v[10:] for n, v in c.items()})
    for k in (1, 2):
        changes, _, kept = import_head(avatar, tmp_path / "edited.ply", overwrite=True)
        assert kept == avatar.root / f"stage2.before-import-{k}.safetensors"
    assert (avatar.root / "stage2.before-import-1.safetensors").read_bytes() == before
    assert len(load_head(avatar.stage2, "cpu").positions) == 190
    assert not [name for name in avatar.root.iterdir() if "partial" in name.name]


def test_a_folder_that_is_no_avatar_is_not_replaced(avatar, tmp_path):
    export_head(avatar, tmp_path / "head.ply")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("keep me")
    with pytest.raises(TalkheadError, match="photos is no avatar folder, so it will not be replaced"):
        import_head(avatar, tmp_path / "head.ply", tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "a.txt").read_text() == "keep me"


def test_another_head_is_refused(head, avatar, tmp_path):
    gaussians = canonical_gaussians(head)
    write_ply(tmp_path / "turned.ply", gaussians._replace(means=gaussians.means[:, [0, 2, 1]]))
    with pytest.raises(TalkheadError, match=r"turned.ply: the file's splats lie \d+\.\d cm from the avatar's"):
        import_head(avatar, tmp_path / "turned.ply", overwrite=True)


def test_a_head_that_moved_as_a_whole_gets_a_warning(head, avatar, tmp_path):
    gaussians = canonical_gaussians(head)
    write_ply(tmp_path / "moved.ply", gaussians._replace(means=gaussians.means + np.float32(2e-5)))
    _, warnings, _ = import_head(avatar, tmp_path / "moved.ply", tmp_path / "new.avatar")
    assert warnings[-1].startswith("200 of 200 splats were moved or added; a file that was exported with --landmarks")


def drop(name):
    return lambda c: {key: column for key, column in c.items() if key != name}


def put(name, place, value):
    def change(c):
        c[name][place] = value
    return change


@pytest.mark.parametrize("change, sentence", [
    (drop("scale_2"), "is no 3DGS file: its vertices have no scale_2"),
    (lambda c: {n: c[n] for n in "xyz"}, "its vertices have no f_dc_0, f_dc_1, f_dc_2, opacity, scale_0"),
    (put("rot_1", 17, np.nan), r"rot_1 of splat 17 is nan; mend or delete it \(1 such value\(s\)\)"),
    (put("opacity", slice(2, 4), np.inf), r"opacity of splat 2 is inf; mend or delete it \(2 such"),
    (lambda c: {n: c[n] * (0 if n.startswith("rot") else 1) for n in c}, "the rotation of splat 0 is zero"),
    (lambda c: {n: c[n][:0] for n in c}, "holds no splats"),
])
def test_bad_values_are_refused(head, tmp_path, change, sentence):
    write_ply(tmp_path / "head.ply", canonical_gaussians(head))
    rewrite(tmp_path / "head.ply", tmp_path / "bad.ply", change)
    with pytest.raises(TalkheadError, match=sentence):
        read_ply(tmp_path / "bad.ply")


@pytest.mark.parametrize("before, after, sentence", [
    (b"ply\n", b"plx\n", "is not a PLY file"),
    (b"end_header\n", b"", "is not a PLY file"),
    (b"binary_little_endian", b"ascii", "expected the PLY format binary_little_endian, found 'ascii'; save it as binary"),
    (b"element vertex 200", b"element chunk 3\nproperty float min_x\nelement vertex 200",
     "first element to be vertex, found 'element chunk 3'; save it as an uncompressed splat .ply"),
    (b"element vertex 200", b"element vertex many", "found 'element vertex many'"),
    (b"element vertex 200", b"element vertex 201", r"is cut short: 201 splats need 13668 bytes after the header, found 13600"),
    (b"property float nx", b"property list uchar int nx", "'property list uchar int nx' is no property of a splat"),
    (b"property float nx", b"property float x", "names a property twice"),
])
def test_bad_headers_are_refused(head, tmp_path, before, after, sentence):
    write_ply(tmp_path / "head.ply", canonical_gaussians(head))
    data = (tmp_path / "head.ply").read_bytes()
    (tmp_path / "bad.ply").write_bytes(data.replace(before, after, 1))
    with pytest.raises(TalkheadError, match=sentence):
        read_ply(tmp_path / "bad.ply")


def test_other_bad_files(tmp_path):
    with pytest.raises(TalkheadError, match="none.ply does not exist"):
        read_ply(tmp_path / "none.ply")
    with pytest.raises(TalkheadError, match=re.escape(f"{tmp_path} cannot be read: Is a directory")):
        read_ply(tmp_path)
    for data in (b"", b"ply", b"ply\nend_header", b"\x00" * 300):
        (tmp_path / "bad.ply").write_bytes(data)
        with pytest.raises(TalkheadError, match="is not a PLY file"):
            read_ply(tmp_path / "bad.ply")
    (tmp_path / "bad.ply").write_bytes(b"ply\nend_header\n")
    with pytest.raises(TalkheadError, match="found 'none'"):
        read_ply(tmp_path / "bad.ply")


def test_more_than_a_head_holds_is_left_out_with_a_warning(head, tmp_path):
    write_ply(tmp_path / "head.ply", canonical_gaussians(head))

    def add(c):
        c["scale_0"][[3, 4]] = -1
        return {**c, "f_rest_0": c["x"], "f_rest_1": 0 * c["x"]}

    rewrite(tmp_path / "head.ply", tmp_path / "foreign.ply", add)
    gaussians, warnings = read_ply(tmp_path / "foreign.ply")
    assert len(gaussians.means) == 200 and warnings == [
        "colours that change with the view (2 f_rest_ properties) are left out",
        "2 splat(s) larger than 20 mm will be shown that large"]
    rewrite(tmp_path / "head.ply", tmp_path / "zero.ply", lambda c: {**drop("nx")(c), "f_rest_0": 0 * c["x"]})
    assert read_ply(tmp_path / "zero.ply")[1] == []
    assert set(NEEDED) < set(PROPERTIES)
