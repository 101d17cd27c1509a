"""talkhead: alpha, labels and the background plate, the second pass over the video."""
