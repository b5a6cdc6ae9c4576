"""ketchd: the daemon of ketch. Start reading in `engine/`."""
