"""State: what a tree keeps of itself between runs, and its lock."""

# Names in a staging folder.
MARK = "made-by-rebaser"  # is in every staging folder
PROBE = "probe"  # tells the file system's time
NEW = "new"  # a state file that is being written
NOTE = "elsewhere-"  # names a staging folder on another file system
