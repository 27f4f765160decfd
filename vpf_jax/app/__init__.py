"""What turns functions into a program: settings and flags, folders, the run loop, progress and tables."""
