import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from thinned.engine.evaluation import Evaluation
from thinned.engine.losses import cross_entropy
from thinned.engine.metrics import BatchSums, Totals, batch_sums


def case(count, classes, seed):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (count, classes)).astype(np.float32)
    return logits, random.integers(0, classes, count).astype(np.int32)


@jax.jit
def sums_of(logits, labels):
    return batch_sums(cross_entropy(logits, labels), logits, labels)


# Few shapes: every new one is a new compilation.
@given(st.sampled_from([1, 2, 57]), st.sampled_from([2, 7]), st.integers(0, 999))
def test_loss_and_accuracy_are_those_of_scikit_learn(count, classes, seed):
    logits, labels = case(count, classes, seed)
    totals = Totals().add(sums_of(logits, labels))
    wide = np.asarray(logits, np.float64)
    probabilities = np.exp(wide - np.logaddexp.reduce(wide, axis=1, keepdims=True))
    expected = reference.log_loss(labels, probabilities, labels=range(classes))
    assert totals.mean_loss == pytest.approx(expected, rel=1e-5)
    assert totals.accuracy == reference.accuracy_score(labels, np.argmax(logits, 1))
    assert totals.count == count


@given(st.sampled_from([(1, 4), (13, 1), (30, 31)]), st.integers(0, 999))
def test_padding_counts_for_nothing(sizes, seed):
    count, padding = sizes
    logits, labels = case(count + padding, 4, seed)
    mask = np.arange(count + padding) < count
    losses = np.where(mask, cross_entropy(logits, labels), np.nan).astype(np.float32)
    padded = jax.jit(batch_sums)(losses, logits, labels, mask)
    alone = sums_of(logits[:count], labels[:count])
    assert int(padded.count) == int(alone.count) == count
    assert int(padded.correct) == int(alone.correct)
    assert float(padded.loss) == pytest.approx(float(alone.loss), rel=1e-5)


def test_confusion_is_that_of_scikit_learn():
    logits, labels = case(500, 5, 0)
    found = Evaluation(Totals(), np.asarray(labels), np.argmax(logits, 1), 5)
    assert np.array_equal(found.confusion, reference.confusion_matrix(labels, found.predicted))


@given(st.lists(st.floats(0, 50, width=32), min_size=1, max_size=40), st.data())
def test_totals_do_not_depend_on_how_steps_are_chunked(losses, data):
    cut = data.draw(st.integers(0, len(losses)))
    ones = np.ones(len(losses), np.int32)

    def sums(a, b):
        return BatchSums(np.asarray(losses[a:b], np.float32), ones[a:b], ones[a:b])

    whole = Totals().add(sums(0, len(losses)))
    assert Totals().add(sums(0, cut)).add(sums(cut, len(losses))) == whole


def test_nothing_counted_is_not_a_number():
    assert np.isnan(Totals().accuracy)
    assert np.isnan(Totals().mean_loss)
