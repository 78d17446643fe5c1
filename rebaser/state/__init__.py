"""State: what a tree keeps of itself between runs, and its lock."""

RUNS = "runs"  # the folder of the records, which makes a folder a tree
MARK = "made-by-rebaser"  # is in every staging folder
PROBE = "probe"  # tells the file system's time
