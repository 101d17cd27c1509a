"""An invisible mark for videos: 48 bits that survive re-encoding, scaling and cropping. docs/formats.md defines it."""
