"""What a contained process is, as data, and how it is entered."""
