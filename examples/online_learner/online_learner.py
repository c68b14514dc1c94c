"""A plugin that learns handwritten digits, one at a time, and carries on bit for bit when it is killed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from holdfast import EverySteps, SnapshotConfig, StatefulPlugin

CLASSES = 10


class Model:
    """A linear classifier with momentum, and all that its next step depends on.

    What it has seen is part of it: a variable of the plugin would be durable at once, and so ahead of the weights in
    the last snapshot.
    """

    def __init__(self, inputs: int, seed: int) -> None:
        self.weights = np.zeros((inputs + 1, CLASSES))
        self.velocity = np.zeros_like(self.weights)
        self.steps = 0
        self.random = np.random.default_rng(seed)

    def get_state(self) -> dict[str, Any]:
        """Return what a snapshot holds."""
        return {
            "weights": self.weights,
            "velocity": self.velocity,
            "steps": self.steps,
            "random": self.random.bit_generator.state,
        }

    def set_state(self, tree: dict[str, Any]) -> None:
        """Be as the snapshot was."""
        self.weights, self.velocity, self.steps = tree["weights"], tree["velocity"], tree["steps"]
        self.random.bit_generator.state = tree["random"]

    def learn(self, image: NDArray[np.float64], digit: int, rate: float) -> None:
        """Take one step of gradient descent.

        Products are summed up row by row, without a matrix library: those may add in another order in another process.
        """
        inputs = np.append(image, 1.0)[:, np.newaxis]
        scores = (inputs * self.weights).sum(axis=0)
        likely = np.exp(scores - scores.max())
        likely /= likely.sum()
        likely[digit] -= 1.0
        self.velocity = 0.9 * self.velocity - rate * inputs * likely
        self.weights = self.weights + self.velocity
        self.steps += 1

    def guess(self, images: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return a digit for each image."""
        return (images @ self.weights[:-1] + self.weights[-1]).argmax(axis=1)


class OnlineLearner(StatefulPlugin):
    """Draws digits from a stream without an end, learns ``steps`` of them, and is tested on digits it never saw."""

    condition = EverySteps(1_000)

    class Config(SnapshotConfig):
        """What may be chosen, with how often snapshots are taken and how many are kept."""

        steps: int = 20_000
        rate: float = 0.002
        seed: int = 7

    def setup(self) -> None:
        """Read the digits, and begin with an empty model; if there is a snapshot, it is filled from that."""
        digits = load_digits()
        images, self.answers = digits.data / 16.0, digits.target
        self.seen, self.unseen = images[:1_500], images[1_500:]
        self.model = Model(images.shape[1], self.config.seed)
        self.snapshots.register("model", self.model)

    def run(self) -> None:
        """Learn what is left to learn, and look how well that went."""
        for _ in self.track(range(self.model.steps, self.config.steps)):
            at = int(self.model.random.integers(len(self.seen)))
            self.model.learn(self.seen[at], int(self.answers[at]), self.config.rate)
        right = self.model.guess(self.unseen) == self.answers[len(self.seen) :]
        with self.transaction():
            self.state.steps = self.model.steps
            self.state.accuracy = float(right.mean())
