"""What is done with a finished run: using it, taking it elsewhere, publishing it."""
