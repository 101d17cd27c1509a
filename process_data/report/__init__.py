"""talkhead: report.html of a processed clip."""
