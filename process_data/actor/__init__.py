"""talkhead: the synthetic actor, a drawn person with exact ground truth, for tests, demo and benchmarks."""
