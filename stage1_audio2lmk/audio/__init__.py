"""talkhead: samples to feature rows: log-mel, formants, and augmentation."""
