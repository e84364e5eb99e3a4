"""From a config to everything that a new training needs, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, replace

from thinned.core.config import Config
from thinned.core.types import Dataset
from thinned.data.facts import Facts
from thinned.data.sources.load import load_data
from thinned.engine.build import Built
from thinned.engine.layout import with_parallel
from thinned.runs.beginning import Beginning
from thinned.runs.pretrained import facts_of, read_beginning, resolved


@dataclass(frozen=True)
class Prepared:
    """What a new training needs.

    Attributes:
        dataset: the images.
        built: network, plan and so on; its config has no ``auto`` left that was decided here.
        beginning: pretrained weights, or None.
    """

    dataset: Dataset
    built: Built
    beginning: Beginning | None

    @classmethod
    def of(cls, config: Config, dataset: Dataset | None = None) -> Prepared:
        """Load the data of a config, its weights, and build what it asks for.

        Args:
            config: valid.
            dataset: the data, where they are loaded already.

        Raises:
            RequestError: the data or the weights cannot be read, or do not fit the config.
        """
        config = with_parallel(config)
        notes: tuple[str, ...] = ()
        if dataset is None:
            config, notes = resolved(config)
            dataset = load_data(config)
        dataset = replace(dataset, notes=(*dataset.notes, *notes))
        facts = facts_of(Facts.of(dataset, config), config)
        beginning = read_beginning(config, facts) if config.is_pretrained else None
        start = None if beginning is None else beginning.start
        return cls(dataset, Built.of(config, facts, dataset.train.labels, start), beginning)
