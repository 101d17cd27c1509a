"""talkhead, stage 1: sound to landmark displacements, causal but for 80 ms of look-ahead."""

import talkhead_guard

talkhead_guard.check("shared")
