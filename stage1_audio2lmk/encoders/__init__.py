"""talkhead: speech encoders: the default one and those of the transformers library."""
