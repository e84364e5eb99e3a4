"""The learning-rate range test."""

import numpy as np
import pytest

from thinned.cli.main import main
from thinned.core.config import Config, DataConfig, MlpConfig
from thinned.core.errors import RequestError
from thinned.runs import find_lr as find_lr_module
from thinned.runs.find_lr import Curve, find_lr


def test_the_steepest_place_of_a_known_curve_is_found():
    rates = np.geomspace(1e-6, 10, 400)
    # Falls around 1e-3 as a sigmoid of the logarithm, rises beyond 0.1.
    logs = np.log10(rates)
    losses = 2.3 - 1.5 / (1 + np.exp(-4 * (logs + 3))) + np.maximum(logs + 1, 0) ** 2
    curve = Curve(rates, losses, losses)
    assert curve.steepest == pytest.approx(1e-3, rel=0.1)
    assert curve.at_minimum == pytest.approx(0.1 * rates[np.argmin(losses)])


def test_single_losses_near_nothing_neither_end_the_sweep_nor_are_its_advice():
    random = np.random.default_rng(0)
    # As of one image a step: mostly 0, now and then large; better from 1e-3 on.
    rates = np.geomspace(1e-6, 10, 200)
    means = 2.3 - 1.2 / (1 + np.exp(-4 * (np.log10(rates) + 3)))
    losses = means * random.exponential(size=200)
    losses[0] = 1e-3
    assert losses.min() < means.min() / 100
    assert not any(find_lr_module._has_blown_up(losses[:count]) for count in range(1, 201))
    curve = Curve(rates, losses, find_lr_module._smoothed(losses))
    assert curve.steepest >= rates[10]
    assert curve.at_minimum >= rates[10] / 10
    assert find_lr_module._has_blown_up([2.0] * 30 + [80.0] * 5)
    # Of the average itself, without the bias of its start.
    weights = 0.9 ** np.arange(200)[::-1]
    assert curve.smoothed[-1] == pytest.approx(np.average(losses, weights=weights))


def test_a_network_is_swept_until_it_blows_up(tiny_data):
    data, mlp = DataConfig(path=str(tiny_data)), MlpConfig(hidden=(16,))
    config = Config(batch_size=20, data=data, model="mlp", mlp=mlp)
    curve = find_lr(config, 1e-5, 1e4, 120)
    assert 20 < len(curve.losses) < 120
    assert np.all(np.isfinite(curve.losses))
    assert 1e-5 < curve.steepest < 1
    np.testing.assert_allclose(curve.rates[1:] / curve.rates[:-1], curve.rates[1] / curve.rates[0])
    again = find_lr(config, 1e-5, 1e4, 120)
    assert np.array_equal(curve.losses, again.losses)


def test_the_command_draws_and_refuses(tiny_data, tmp_path, capsys):
    words = ["find-lr", "--data", str(tiny_data), "--batch-size", "20", "--steps", "40"]
    words += ["--model", "mlp", "--mlp.hidden", "16"]
    assert main([*words, "--out", str(tmp_path / "lr.svg")]) == 0
    assert "steepest at --learning-rate" in capsys.readouterr().out
    assert (tmp_path / "lr.svg").read_text().startswith("<?xml")
    # Told before anything is loaded or trained.
    assert main(["find-lr", "--data", "nowhere", "--out", str(tmp_path / "lr.bmp")]) == 2
    assert "must end in .svg or .png" in capsys.readouterr().err
    assert main([*words, "--low", "1", "--high", "0.1"]) == 2
    assert main([*words, "--steps", "3"]) == 2
    with pytest.raises(RequestError, match="larger than"):
        find_lr(Config(batch_size=5000, data=DataConfig(path=str(tiny_data))))
