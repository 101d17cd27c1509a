"""talkhead: reading and writing video and sound through PyAV."""
