"""Settings of `talkhead process`."""

from dataclasses import dataclass

from shared.errors import TalkheadError


@dataclass(frozen=True)
class ProcessConfig:
    """Every number that a user may want to change; lengths are in the unit that the name says."""

    max_size: int = 512  # a larger crop is scaled down to this many pixels
    min_size: int = 96  # a smaller one is refused
    crop_faces: float = 3.2  # side of the crop, in heights of the face
    focal_sizes: float = 2.2  # focal length in picture sizes; a talking head does not reveal the true one
    pose_iterations: int = 10
    pose_smoothness: float = 3.0  # weight of the poses' second differences against a one-pixel landmark error
    rest_window: int = 9  # Savitzky–Golay window for the points that speech does not move, frames
    test_share: float = 0.1  # of the clip's end, held out when no split is given
    plate_samples: int = 60  # frames a shot that the background plate is estimated from
    max_turn_degrees: float = 35.0  # frames with the head turned further are skipped
    max_lost_share: float = 0.5  # refuse a clip in which the face is lost for more than this
    min_good_seconds: float = 3.0  # refuse a clip with less that can be trained on
    fix_sync: bool = False  # shift the sound so that it goes with the lips

    def __post_init__(self) -> None:
        for name, least in (("max_size", 32), ("min_size", 32), ("crop_faces", 1), ("focal_sizes", 0.1), ("pose_iterations", 1),
                            ("pose_smoothness", 0), ("rest_window", 3), ("test_share", 0), ("plate_samples", 1),
                            ("max_turn_degrees", 0), ("max_lost_share", 0), ("min_good_seconds", 0)):
            if not getattr(self, name) >= least:
                raise TalkheadError(f"process {name} should be at least {least}, found {getattr(self, name)}")
        for name in ("test_share", "max_lost_share"):
            if not getattr(self, name) < 1:
                raise TalkheadError(f"process {name} should be less than 1, found {getattr(self, name)}")
