"""talkhead, stage 2: landmarks and head poses to the head, as 3D Gaussians of one person."""

import talkhead_guard

talkhead_guard.check("shared")
