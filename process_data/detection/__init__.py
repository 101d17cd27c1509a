"""talkhead: what finds faces, the person and hands in a frame, and the first pass that asks it."""
