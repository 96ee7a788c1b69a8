"""Which channel shows the lesion, and its probability, for labels and for regions."""

import pytest
import torch

from nnunet.lesion import Anatomy
from utils.errors import UserError

BRATS = ((1, 2, 3), (2, 3), (3,))


@pytest.mark.parametrize(
    ("anatomy", "label", "channel"),
    [
        (Anatomy(num_labels=3), -1, 2),
        (Anatomy(num_labels=4), 2, 2),
        (Anatomy(num_labels=4, regions=BRATS), -1, 2),
        (Anatomy(num_labels=4, regions=BRATS), 2, 1),
        (Anatomy(num_labels=4, regions=BRATS), 1, 0),
        (Anatomy(num_labels=4, regions=((1, 2, 3), (2, 3), (2,))), -1, 1),
        (Anatomy(num_labels=3, regions=((1, 2), (2, 1))), -1, 1),
    ],
)
def test_a_label_is_read_from_its_own_channel_or_the_smallest_region(
    anatomy: Anatomy, label: int, channel: int
) -> None:
    assert anatomy.channel(label) == channel


@pytest.mark.parametrize("label", [0, 3, -3, -4])
def test_the_background_and_unknown_labels_are_no_lesion(label: int) -> None:
    with pytest.raises(UserError, match="between 1 and 2"):
        Anatomy(num_labels=3).channel(label)


def test_a_label_outside_every_region_is_refused() -> None:
    with pytest.raises(UserError, match=r"Label 2 .* none of the regions"):
        Anatomy(num_labels=3, regions=((1,),)).channel()


def test_labels_share_one_softmax() -> None:
    logits = torch.log(torch.tensor([0.2, 0.3, 0.5])).view(1, 3, 1, 1)
    anatomy = Anatomy(num_labels=3)
    assert anatomy.lesion(logits).item() == pytest.approx(0.5)
    assert anatomy.organ(logits).item() == pytest.approx(0.8)


def test_each_region_has_its_own_sigmoid_and_the_organ_is_the_most_probable() -> None:
    logits = torch.logit(torch.tensor([0.9, 0.4])).view(1, 2, 1, 1)
    anatomy = Anatomy(num_labels=3, regions=((1, 2), (2,)))
    assert anatomy.lesion(logits).item() == pytest.approx(0.4)
    assert anatomy.organ(logits).item() == pytest.approx(0.9)


def test_half_precision_logits_give_single_precision_probabilities() -> None:
    assert Anatomy(num_labels=3).lesion(torch.zeros(1, 3, 2, 2).half()).dtype == torch.float32


def test_the_lesion_is_predicted_where_it_is_likeliest() -> None:
    logits = torch.tensor([[0.1, 0.6, 0.5], [0.3, 0.2, 0.4], [0.4, 0.5, 0.45]]).T.view(1, 3, 1, 3)
    anatomy = Anatomy(num_labels=3)
    assert anatomy.is_lesion(logits).flatten().tolist() == [False, True, False]
    assert anatomy.is_organ(logits).flatten().tolist() == [True, True, True]


def test_a_region_is_predicted_above_one_half() -> None:
    logits = torch.tensor([[0.1, -0.1, 1.0], [-0.1, -0.1, 0.1]]).view(1, 2, 1, 3)
    anatomy = Anatomy(num_labels=3, regions=((1, 2), (2,)))
    assert anatomy.is_lesion(logits).flatten().tolist() == [False, False, True]
    assert anatomy.is_organ(logits).flatten().tolist() == [True, False, True]


def test_the_target_shows_the_lesion_as_label_or_region() -> None:
    mask = torch.tensor([-1, 0, 1, 2, 3]).view(1, 1, 1, 5)  # 3: the ignore label
    assert Anatomy(num_labels=3).is_lesion_in(mask).flatten().tolist() == [False, False, False, True, False]
    channels = torch.tensor([[0, 1, 1], [0, 0, 1], [1, 0, 0]]).view(1, 3, 1, 3)  # the last: ignored
    regions = Anatomy(num_labels=3, regions=((1, 2), (2,)))
    assert regions.is_lesion_in(channels).flatten().tolist() == [False, False, True]
