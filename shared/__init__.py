"""Ground floor of talkhead: file formats, media I/O, cameras, metrics. Imports no other package of the project."""
