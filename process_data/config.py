"""Settings of `talkhead process`."""

from dataclasses import dataclass

from process_data.detection.people import check_person
from shared.config import Settings, setting
from shared.errors import TalkheadError


@dataclass(frozen=True)
class ProcessConfig(Settings):
    """Every number that a user may want to change; lengths are in the unit that the name says."""

    max_size: int = setting(512, "a larger crop is scaled down to this many pixels", 32, 4096)
    min_size: int = setting(96, "a smaller crop is refused, pixels", 32, 4096)
    crop_faces: float = setting(3.2, "side of the crop, in heights of the face", 1, 20)
    focal_sizes: float = setting(2.2, "focal length in picture sizes; a talking head does not reveal the true one", 0.1, 100)
    pose_iterations: int = setting(10, "of the fit of the head's poses", 1, 1000)
    pose_smoothness: float = setting(3.0, "weight of the poses' second differences against a one-pixel landmark error", 0, 1e6)
    register_poses: bool = setting(True, "fit the head's poses to the pictures at last, hair and outline included")
    rest_window: int = setting(9, "Savitzky–Golay window for the points that speech does not move, frames", 3, 251)
    test_share: float = setting(0.1, "of the clip's end, held out when no split is given", 0, 0.9)
    plate_samples: int = setting(60, "frames a shot that the background plate is estimated from", 1, 1000)
    max_turn_degrees: float = setting(35.0, "frames with the head turned further are skipped", 0, 180)
    max_lost_share: float = setting(0.5, "refuse a clip in which the face is lost for more than this", 0, 0.99)
    min_good_seconds: float = setting(3.0, "refuse a clip with less that can be trained on", 0, 3600)
    person: str = setting("", "whom to keep to of several people: left, right or a number from the left; else the largest face")
    fix_sync: bool = setting(False, "shift the sound so that it goes with the lips")

    def check(self) -> None:
        check_person(self.person)
        if self.min_size > self.max_size:
            raise TalkheadError(f"min_size should be at most max_size, which is {self.max_size}, found {self.min_size}")
