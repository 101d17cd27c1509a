"""A video of one person to a clip folder, and the synthetic actor that stands in for a person."""
