"""talkhead: head poses, landmarks and torso motion from what the detector saw and from the pixels."""
