"""Scan: which files of a tree are of interest, and what each of them is."""

# By these names the tree below a folder is told: the folder of its state, at its root or, where
# that has a `var`, there; in it, what makes it a tree.
STATE, STATE_IN_VAR = ".rebaser", "var/lib/rebaser"
LOCK = "rebase.lock"  # in STATE, or in var/lock
RUNS = "runs"  # the folder of the records
