"""Plan: what each image is for this run, which of them move, and where to; it changes nothing."""
