"""Videos: decoding, looking at a file before it is taken, drawing and encoding."""
