"""What Python reads and changes on the host in a step: where that has changed, a recording is checked before its replay."""
