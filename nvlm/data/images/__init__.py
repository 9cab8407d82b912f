"""A sample's pixels: image files and video frames decoded, and cut into tiles.

From outside: `image.decode_image` and `image.read_image_size`, `tiling.choose_grids` and
`tiling.cut_tiles`.
"""
