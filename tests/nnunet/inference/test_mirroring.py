"""The mirrored views."""

from nnunet.inference.mirroring import mirrored_axes


def test_a_volume_has_eight_views_the_identity_first() -> None:
    views = mirrored_axes((4, 8, 8))
    assert len(set(views)) == 8
    assert views[0] == ()
    assert {axis for axes in views for axis in axes} == {2, 3, 4}


def test_a_slice_has_four_views_that_leave_its_depth() -> None:
    assert set(mirrored_axes((1, 8, 8))) == {(), (3,), (4,), (3, 4)}
