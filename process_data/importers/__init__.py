"""talkhead: clips from other projects' data folders."""
