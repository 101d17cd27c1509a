"""Settings of `talkhead process`."""

from dataclasses import dataclass


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
