"""The benchmark: rebaser beside the programs that users have without it; bin/bench runs it."""
