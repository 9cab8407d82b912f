"""Where samples lie: sources and their splits, tars and Energon folders, read by byte range."""
