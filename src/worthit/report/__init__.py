"""What the faces show beside `cost` and `judge`: records of what ships, and the offline page."""
