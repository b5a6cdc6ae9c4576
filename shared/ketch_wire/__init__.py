"""What crosses between two ketch programs. Does no I/O."""
