"""talkhead, torso: the rendered head and the warped mean torso plate -> torso and neck, composited into the full frame."""

import talkhead_guard

talkhead_guard.check("shared")
