from nvlm.data.tile_tags import tags_of_image

THUMBNAIL = "<tile_global_thumbnail>"


def test_one_tag_per_tile_and_the_thumbnail_last():
    assert tags_of_image(7, "1d", use_thumbnail=True) == [
        "<tile_1>", "<tile_2>", "<tile_3>", "<tile_4>", "<tile_5>", "<tile_6>", THUMBNAIL,
    ]  # fmt: skip
    assert tags_of_image(3, "1d", use_thumbnail=True) == ["<tile_1>", "<tile_2>", THUMBNAIL]


def test_a_single_tile_shows_the_whole_image():
    assert tags_of_image(1, "1d", use_thumbnail=True) == [THUMBNAIL]
    assert tags_of_image(1, "1d", use_thumbnail=False) == [THUMBNAIL]


def test_without_thumbnail_every_tile_has_a_number():
    assert tags_of_image(3, "1d", use_thumbnail=False) == ["<tile_1>", "<tile_2>", "<tile_3>"]


def test_no_tags():
    assert tags_of_image(3, "none", use_thumbnail=True) == ["", "", ""]
