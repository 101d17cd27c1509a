"""talkhead: the commands, a file for each group; `cli` puts them under one root. Heavy imports stay inside the commands."""
