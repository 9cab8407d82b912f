"""A sample's pixels: image files and video frames decoded, and cut into tiles."""
