"""Temperatures: each of one way to predict, of the weights that it was fitted for."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import blobs, write_idx
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special, stats

from thinned.cli.main import main
from thinned.core.config import Config, DataConfig, DropoutConfig, MlpConfig
from thinned.core.errors import RequestError
from thinned.runs import calibration
from thinned.runs import predictions as trust
from thinned.runs.calibration import Calibration
from thinned.runs.train import train
from thinned.trust import scores
from thinned.trust.sampling import averaged, of_logits


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("calibration")


@pytest.fixture(scope="module")
def runs(base):
    """Two MLPs that learned from labels of which a fifth is drawn, so that much is unsure."""
    parts = []
    for count, seed in ((900, 0), (400, 1)):
        images, labels = blobs(count, seed)
        random = np.random.default_rng(seed)
        drawn = random.integers(0, 3, count).astype(np.uint8)
        parts.append((images, np.where(random.random(count) < 0.2, drawn, labels)))
    data = DataConfig(path=str(write_idx(base / "data", *parts)), validation=400)
    config = Config(
        data=data,
        model="mlp",
        mlp=MlpConfig(hidden=(64, 64)),
        epochs=4,
        batch_size=20,
        dropout=DropoutConfig(rate=0.5),
    )
    return [train(replace(config, seed=seed), runs=base, name=f"s{seed}") for seed in (0, 1)]


@pytest.fixture
def copied(runs, tmp_path):
    for run in runs:
        shutil.copytree(run.folder, tmp_path / run.folder.name)
    return trust.load_runs([tmp_path / run.folder.name for run in runs])


WAYS = [(1, 0), (1, 30), (2, 0), (2, 5)]


@pytest.mark.parametrize(("members", "samples"), WAYS)
def test_a_temperature_is_that_of_the_averaged_probabilities(runs, members, samples):
    held, test = runs[0].dataset.validation, runs[0].dataset.test
    averaged = np.mean(
        [trust.predictions_of([run], held.images, samples).probabilities for run in runs[:members]],
        0,
    )

    def loss(log_temperature):
        logs = special.log_softmax(np.log(averaged) / np.exp(log_temperature), 1)
        return -logs[np.arange(len(held)), held.labels].mean()

    found = trust.fitted(runs[:members], samples)
    best = optimize.minimize_scalar(loss, bracket=(-3, 0, 3))
    assert np.log(found.temperature) == pytest.approx(best.x, abs=1e-4)
    assert found.after == pytest.approx(best.fun, abs=1e-9)
    assert found.after <= found.before
    # On new images it may cost at most what the deviation of 15 bins' accuracies makes of nothing.
    before = trust.predictions_of(runs[:members], test.images, samples)
    after = trust.tempered(before, found.temperature)
    errors = [scores.reliability(each.probabilities, test.labels).error for each in (before, after)]
    assert errors[1] <= errors[0] + np.sqrt(scores.BINS / (4 * len(test)))


def test_each_way_has_a_temperature_of_its_own(copied):
    found = {
        (members, samples): trust.calibrate(copied[:members], samples) for members, samples in WAYS
    }
    assert len({each.temperature for each in found.values()}) == len(WAYS)
    # A mean of samples is less sure than a single pass: it is to be sharpened more.
    assert found[1, 30].temperature < found[1, 0].temperature
    again = trust.load_runs([run.folder for run in copied])
    for (members, samples), each in found.items():
        assert calibration.temperature_of(again[:members], samples) == each.temperature
    backwards = again[::-1]
    assert calibration.temperature_of(backwards, 5) == found[2, 5].temperature
    images = again[0].dataset.test.images
    plain, tempered = (trust.predictions_of(again, images, 5, on) for on in (False, True))
    expected = scores.with_temperature(plain.probabilities, found[2, 5].temperature)
    np.testing.assert_allclose(tempered.probabilities, expected, atol=1e-12)
    with pytest.raises(RequestError, match=r"is not calibrated for 7 samples: run .* --samples 7$"):
        trust.predictions_of(again[:1], images, 7, calibrated=True)
    with pytest.raises(RequestError, match=r"s1 is not calibrated: run thinned calibrate \S+s1$"):
        trust.predictions_of(again[1:], images, calibrated=True)


def test_the_temperature_of_other_weights_is_refused_until_it_is_fitted_again(copied, capsys):
    run = copied[0]
    assert main(["calibrate", str(run.folder)]) == 0
    assert main(["calibrate", str(run.folder), "--samples", "3"]) == 0
    step = int(run.state.step)
    assert main(["train", "--resume", str(run.folder), "--epochs", "5", "--quiet"]) == 0
    capsys.readouterr()
    words = ["evaluate", str(run.folder), "--calibrated"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"other weights (step {step}): run thinned calibrate {run.folder}\n" in error
    assert main(["calibrate", str(run.folder)]) == 0
    assert main(words) == 0
    kept = json.loads((run.folder / "calibration.json").read_text())["temperatures"]
    # What is of no use any more is not kept.
    assert [(each["samples"], each["runs"][0]["step"]) for each in kept] == [(0, step * 5 // 4)]
    assert kept[0]["runs"][0]["seed"] == 0


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        '{"temperature": 1.5}',
        '{"temperatures": 1}',
        '{"temperatures": [1]}',
        '{"temperatures": [{"samples": 0, "runs": [1], "temperature": 1.5}]}',
        '{"temperatures": [{"samples": 0, "runs": [], "temperature": NaN}]}',
    ],
)
def test_a_file_that_is_damaged_or_of_before_is_as_none(copied, text):
    run = copied[0]
    (run.folder / "calibration.json").write_text(text)
    with pytest.raises(RequestError, match="is not calibrated: run thinned calibrate"):
        calibration.temperature_of([run])
    calibration.keep([run], 0, Calibration(2.0, 0.0, 0.0, 60))
    assert calibration.temperature_of([run]) == 2.0


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*(st.integers(1, 4) for _ in range(3)), st.integers(2, 6)),
    spread=st.sampled_from([0, 1e-4, 1, 30, 1e4]),
    temperature=st.floats(*scores.TEMPERATURES),
)
def test_samples_never_disagree_more_than_there_is_uncertainty(seed, shape, spread, temperature):
    logits = np.random.default_rng(seed).normal(0, spread, shape).astype(np.float32)
    drawn = averaged([of_logits(member) for member in logits])
    told = trust.tempered(drawn, temperature)
    for each in (drawn, told):
        assert np.all(each.mutual_information >= 0)
        assert np.all(each.mutual_information <= each.entropy)
    p = special.softmax(logits.astype(np.float64), -1).reshape(-1, *shape[2:])
    entropy, alone = stats.entropy(p.mean(0), axis=-1), stats.entropy(p, axis=-1).mean(0)
    np.testing.assert_allclose(drawn.mutual_information, entropy - alone, atol=1e-12)
    after = stats.entropy(scores.with_temperature(p.mean(0), temperature), axis=-1)
    np.testing.assert_allclose(told.entropy, after, atol=1e-12)
    part = told.mutual_information * entropy
    np.testing.assert_allclose(part, after * drawn.mutual_information, atol=1e-12)
