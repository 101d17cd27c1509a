"""talkhead: head poses, landmarks and torso motion from the detector's points and the pixels."""
