"""Settings of `talkhead process`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessConfig:
    """Every number that a user may want to change; lengths are in the unit that the name says."""

    max_size: int = 512  # a larger crop is scaled down to this many pixels
    crop_faces: float = 3.2  # side of the crop, in heights of the face
    focal_sizes: float = 2.2  # focal length in picture sizes; a talking head does not reveal the true one
    pose_iterations: int = 12
    pose_smoothness: float = 3.0  # weight of the poses' second differences against a one-pixel landmark error
    rest_window: int = 9  # Savitzky–Golay window for the points that speech does not move, frames
    test_share: float = 0.1  # of the clip's end, held out when no split is given
    cut_threshold: float = 0.09  # mean change of a small picture at a cut, of full scale
    plate_samples: int = 120  # frames a shot that the background plate is estimated from
    max_lost_share: float = 0.5  # refuse a clip in which the face is lost for more than this
