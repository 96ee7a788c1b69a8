"""The table of label positions."""

import numpy as np

from data_preprocessing.foreground import foreground_table


def test_row_zero_is_the_shape_and_the_rest_are_positions() -> None:
    label = np.zeros((2, 3, 4), np.int16)
    label[1, 2, 3], label[0, 1, 2] = 1, 5
    assert foreground_table(label).tolist() == [[0, 2, 3, 4], [1, 1, 2, 3], [5, 0, 1, 2]]


def test_a_small_label_is_listed_whole() -> None:
    label = np.ones((10, 10, 10), np.int16)
    assert len(np.unique(foreground_table(label)[1:], axis=0)) == 1000


def test_a_label_of_many_voxels_has_ten_thousand_distinct_rows() -> None:
    table = foreground_table(np.ones((30, 30, 30), np.int16))
    assert len(table) == 10_001
    assert len(np.unique(table[1:], axis=0)) == 10_000


def test_above_a_million_voxels_one_percent_is_drawn() -> None:
    table = foreground_table(np.ones((110, 110, 100), np.int16))
    assert len(table) == 1 + 12_100


def test_the_draw_is_the_same_every_time() -> None:
    label = np.ones((30, 30, 30), np.int16)
    np.testing.assert_array_equal(foreground_table(label), foreground_table(label))


def test_background_and_the_outside_are_not_listed() -> None:
    label = np.array([-1, 0, 1], np.int16).reshape(1, 1, 3)
    assert foreground_table(label).tolist() == [[0, 1, 1, 3], [1, 0, 0, 2]]


def test_with_an_ignore_label_annotated_background_is_listed_and_the_ignored_is_not() -> None:
    label = np.array([-1, 0, 1, 2], np.int16).reshape(1, 1, 4)
    assert foreground_table(label, ignore_label=2)[1:].tolist() == [[0, 0, 0, 1], [1, 0, 0, 2]]


def test_an_empty_label_has_the_shape_only() -> None:
    table = foreground_table(np.zeros((2, 3, 4), np.int16))
    assert table.tolist() == [[0, 2, 3, 4]]
    assert table.dtype == np.int32
