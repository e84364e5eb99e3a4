"""Arrays that cannot be written to, counts at their limits, and a fingerprint that stays."""

import numpy as np
import pytest
from conftest import blobs, write_idx

from thinned.core.errors import RequestError
from thinned.core.types import Dataset, Split
from thinned.data.sources.load import open_source
from thinned.data.split import fingerprint, hold_out, limit


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Dataset:
    return open_source(write_idx(tmp_path_factory.mktemp("s"), blobs(50, 0), blobs(9, 1))).load()


def test_no_array_of_a_dataset_can_be_written_to(small):
    held, few = hold_out(small, 5, 0), limit(small, 30, 0)
    mnist = open_source(None).load()
    splits = (small.train, small.test, held.train, held.validation, few.train, mnist.train)
    for split in (*splits, mnist.test):
        for array in (split.images, split.labels):
            assert array.flags.c_contiguous
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1


def test_the_splits_keep_the_order_of_the_source(small):
    data = hold_out(small, 12, 3)
    where = {image.tobytes(): at for at, image in enumerate(small.train.images)}
    for split in (data.train, data.validation, limit(small, 30, 3).train):
        places = [where[image.tobytes()] for image in split.images]
        assert places == sorted(places)
        assert np.array_equal(split.labels, small.train.labels[places])


def test_counts_that_make_no_sense_are_refused(small):
    with pytest.raises(RequestError, match=r"--data\.validation -5 is negative"):
        hold_out(small, -5, 0)
    for count in (0, -5):
        with pytest.raises(RequestError, match=rf"--data\.limit {count} leaves no training images"):
            limit(small, count, 0)


def test_holding_out_nothing_changes_nothing(small):
    assert hold_out(small, 0, 0) is small


def test_the_fingerprint_is_the_same_in_every_process_and_version():
    split = Split(np.arange(24, dtype=np.uint8).reshape(2, 3, 4, 1), np.array([0, 1], np.int32))
    data = Dataset("any name", split, split, ("0", "1"))
    assert fingerprint(data) == ("23b1db938ede587cb9f6f3b3e2340f54c9494c68942742e65a4f79863a23f664")
    strided = Split(np.asfortranarray(split.images), split.labels)
    assert fingerprint(Dataset("other", strided, split, ("0", "1"))) == fingerprint(data)
