"""What is Cygwin's: PE images and how they move, its programs, its database, its address space."""
