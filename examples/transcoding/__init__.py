"""Fan-out to thousands of chunks and fan-in: a film is split, transcoded in several renditions, and joined again."""
