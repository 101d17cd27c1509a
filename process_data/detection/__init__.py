"""talkhead: detectors of faces, people and hands, and the first pass over a video that runs one."""
