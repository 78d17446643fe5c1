"""State: what a tree keeps of itself between runs, and its lock."""
