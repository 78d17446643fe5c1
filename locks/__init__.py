"""File locks by flock(2); they know nothing of what they protect."""
