"""Attacked images: the gradient is exact, the attack works on the network that serves, and squeezing finds it at the promised rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from headrace_mlops.adversarial import SqueezingDetector, squeezed
from headrace_mlops.dense_network import DenseNetwork, fgsm
from headrace_mlops.events import Observed
from headrace_mlops.watching import ATTACK_WINDOW, AttackDetector

FASHION = Path(__file__).resolve().parents[2] / "examples" / "fashion"


@pytest.fixture(scope="module")
def data():
    with np.load(FASHION / "test-2000.npz") as arrays:
        return arrays["images"], arrays["labels"].astype(int)


@pytest.fixture(scope="module")
def network():
    return DenseNetwork(FASHION / "models" / "mlp128.onnx")


@pytest.fixture(scope="module")
def detector(network, data):
    """Thresholds from the first half of the images; the second half is what they are tried on."""
    return SqueezingDetector(network, data[0][:1_000])


def test_the_network_in_numpy_is_the_one_that_serves(network, data):
    session = onnxruntime.InferenceSession(str(FASHION / "models" / "mlp128.onnx"))
    (served,) = session.run(None, {"image": data[0][:100]})
    assert np.abs(served - network.probabilities(data[0][:100])).max() < 1e-5


def test_the_gradient_is_that_of_finite_differences(network, data):
    images, labels = data[0][:4].astype(float), data[1][:4]
    exact = network.gradient(images, labels).reshape(4, -1)
    random = np.random.default_rng(0)
    for pixel in random.choice(784, 60, replace=False):
        step = np.zeros((4, 784))
        step[:, pixel] = 1e-4
        step = step.reshape(images.shape)
        differences = (network.losses(images + step, labels) - network.losses(images - step, labels)) / 2e-4
        assert np.allclose(exact[:, pixel], differences, rtol=1e-4, atol=1e-9)


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="mlp128"):
        DenseNetwork(FASHION / "models" / "linear.onnx")


@pytest.mark.parametrize("strength", [8.0, 16.0, 32.0])
def test_attacked_images_are_found_at_80_percent_with_5_percent_false_alarms(detector, network, data, strength):
    images, labels = data[0][1_000:], data[1][1_000:]
    attacked = fgsm(network, images, labels, strength)
    right = (network.probabilities(attacked).argmax(axis=1) == labels).mean()
    assert right < (network.probabilities(images).argmax(axis=1) == labels).mean() - 0.2, "the attack works"
    assert np.abs(attacked.astype(int) - images).max() <= strength
    assert detector.flags(attacked).mean() >= 0.9
    assert detector.flags(images).mean() <= 0.05


def test_who_leaves_the_background_alone_is_not_found(detector, network, data):
    """What this detector cannot do, so that nobody takes it for more."""
    images, labels = data[0][1_000:], data[1][1_000:]
    careful = np.where(images > 0, fgsm(network, images, labels, 16.0), 0)
    assert detector.flags(careful).mean() <= 0.05


def test_squeezing_takes_what_is_nearly_black():
    assert squeezed(np.array([0, 39, 40, 255])).tolist() == [0, 0, 40, 255]


def test_single_flags_are_no_alert_and_many_are_one(detector, network, data):
    images, labels = data[0][1_000:], data[1][1_000:]
    attacked = fgsm(network, images, labels, 16.0)
    watching = AttackDetector("watched", "image", detector)

    def alerts(some, name):
        told = []
        for at, image in enumerate(some):
            told += watching.observe(Observed(f"{name}{at}", "watched", at, "completed", "", {"image": image[None]}, {}))
        return told

    assert alerts(images[: ATTACK_WINDOW * 3], "clean") == []
    found = alerts(attacked[:ATTACK_WINDOW], "attacked")
    assert len(found) == 1
    assert (found[0].kind, found[0].severity) == ("adversarial", "critical")
    assert watching.observe(Observed("other", "watched", 0, "completed", "", {"text": images[:1]}, {})) == ()
