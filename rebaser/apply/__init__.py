"""Apply: stage moved copies, check them, and put them in place of their originals."""
