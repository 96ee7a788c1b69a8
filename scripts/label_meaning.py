"""What the channels of probabilities stand for; where two sources agree in it, a mean has a meaning."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from utils.contracts import Dataset, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """The labels, regions and classes of a model's answers, as its plan or a dataset.json names them."""

    label_names: tuple[str, ...]
    regions: tuple[tuple[int, ...], ...] = ()
    regions_class_order: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    ignore_label: int | None = None

    @staticmethod
    def of(source: Plan | Dataset) -> Meaning:
        """What a model with this plan, or trained on this dataset, tells."""
        return Meaning(**{field.name: getattr(source, field.name) for field in fields(Meaning)})

    @property
    def num_channels(self) -> int:
        """Channels of its probabilities: regions, else labels with the background, without `ignore`."""
        labels = len(self.label_names) if self.ignore_label is None else self.ignore_label
        return len(self.regions_class_order) or labels

    def changes(self, other: Meaning) -> tuple[str, ...]:
        """The names of what is not the same in `other`."""
        return tuple(name for name, value in asdict(self).items() if value != getattr(other, name))
