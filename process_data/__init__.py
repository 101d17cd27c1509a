"""talkhead: a video of one person to a clip folder, and the synthetic actor that stands in for a person."""

import talkhead_guard

talkhead_guard.check("shared")
