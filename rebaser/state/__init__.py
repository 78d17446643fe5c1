"""State: what a tree keeps of itself between runs, and its lock."""

MARK = "made-by-rebaser"  # is in every staging folder
PROBE = "probe"  # tells the file system's time
