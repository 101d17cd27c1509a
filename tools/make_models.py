"""The model files of process_data/data, from the parts that mediapipe 0.10.21 (Apache-2.0) carries.

    python3.12 -m venv parts && parts/bin/pip install mediapipe==0.10.21 click
    parts/bin/python tools/make_models.py process_data/data

Later mediapipe releases carry no models. Their tasks take the same ones once metadata tells how a picture goes in and, for
the face detector, how boxes come out: MediaPipe's face detector task knows the short-range model alone, so the full-range
one goes in as an object detector of one class. The same parts give the same files, byte for byte.
"""

import importlib.util
import io
import zipfile
from pathlib import Path

import click

# BlazeFace, full range: one box of one class for each cell of 48×48, four pixels of 192 wide; the first four of a box's 16
# numbers are centre and size, the rest six key points
CELLS, INPUT, BOX, POINTS = 48, 192, 16, 6
UNIX_TIME = (1980, 1, 1, 0, 0, 0)


def with_picture(model: Path, mean: float, deviation: float) -> bytes:
    """The model with metadata saying that pixels go in as (0 … 255 − mean) / deviation."""
    from mediapipe.tasks.python.metadata.metadata_writers.metadata_writer import MetadataWriter

    writer = MetadataWriter.create(bytearray(model.read_bytes()))
    writer.add_general_info(model.stem)
    writer.add_image_input([mean] * 3, [deviation] * 3)
    return steady(bytes(writer.populate()[0]))


def face_detector(model: Path) -> bytes:
    """The full-range face detector as an object detector."""
    from mediapipe.tasks.python.metadata.metadata_writers import metadata_info, metadata_writer, object_detector

    anchors = [object_detector.FixedAnchor((x + 0.5) / CELLS, (y + 0.5) / CELLS, 1.0, 1.0)
               for y in range(CELLS) for x in range(CELLS)]
    writer = object_detector.MetadataWriter.create_for_models_without_nms(
        bytearray(model.read_bytes()), [127.5] * 3, [127.5] * 3, metadata_writer.Labels().add(["face"]),
        object_detector.SsdAnchorsOptions(object_detector.FixedAnchorsSchema(anchors)),
        object_detector.TensorsDecodingOptions(
            num_classes=1, num_boxes=CELLS * CELLS, num_coords=BOX, keypoint_coord_offset=4, num_keypoints=POINTS,
            num_values_per_keypoint=2, x_scale=INPUT, y_scale=INPUT, w_scale=INPUT, h_scale=INPUT,
            apply_exponential_on_box_size=False, sigmoid_score=True),
        output_tensors_order=metadata_info.RawDetectionOutputTensorsOrder.LOCATION_SCORE)
    return steady(bytes(writer.populate()[0]))


def steady(model: bytes) -> bytes:
    """The model with its zip of label files, where it has one, dated 1980, so that each run writes the same bytes."""
    start = model.rfind(b"PK\x03\x04")
    if start < 0 or not zipfile.is_zipfile(io.BytesIO(model)):
        return model
    with zipfile.ZipFile(io.BytesIO(model)) as labels:
        start = min(entry.header_offset for entry in labels.infolist())
        return model[:start] + bundle({entry.filename: labels.read(entry) for entry in labels.infolist()})


def bundle(parts: dict[str, bytes]) -> bytes:
    """A .task file: an uncompressed zip."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as out:
        for name, content in parts.items():
            out.writestr(zipfile.ZipInfo(name, UNIX_TIME), content)
    return file.getvalue()


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def main(out: Path) -> None:
    """Write the model files into OUT; face_landmarker.task is MediaPipe's own and stays as it is."""
    spec = importlib.util.find_spec("mediapipe")
    parts = Path(str(spec.origin)).parent / "modules" if spec else Path("mediapipe")
    if not (parts / "palm_detection").is_dir():
        raise click.ClickException("needs mediapipe 0.10.21, the last release with models: pip install mediapipe==0.10.21")
    out.mkdir(parents=True, exist_ok=True)
    files = {
        "face_detector.tflite": face_detector(parts / "face_detection/face_detection_full_range_sparse.tflite"),
        "selfie_segmenter.tflite": (parts / "selfie_segmentation/selfie_segmentation.tflite").read_bytes(),
        "hand_landmarker.task": bundle({
            "hand_detector.tflite": with_picture(parts / "palm_detection/palm_detection_lite.tflite", 0, 255),
            "hand_landmarks_detector.tflite": with_picture(parts / "hand_landmark/hand_landmark_lite.tflite", 0, 255)}),
    }
    for name, content in files.items():
        (out / name).write_bytes(content)
        click.echo(f"{name}: {len(content)} bytes")


if __name__ == "__main__":
    main()
