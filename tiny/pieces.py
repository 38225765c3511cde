"""The gradient of a chain of compiled pieces.

Under a gradient MLX takes compiled functions apart, and a small model's step is then as long as launching its thousands
of operations takes. Here each piece, and the gradient of each, is a compiled function of its own, which pieces of one
kind share; where a gradient is wanted the piece runs again. Knows pieces and what passes between them; not what they do.
"""

from functools import partial
from typing import Callable, NamedTuple, Sequence

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

Arrays = dict[str, mx.array]
Function = Callable[[Arrays, Arrays, Arrays], Arrays]


class Piece(NamedTuple):
    """``function(weights, state, given)`` gives the next piece's state; the last one's gives ``{"loss": scalar}``.

    prefix  what the dotted names of its weights begin with, and the function does not see
    names   of its weights, without the prefix
    No gradient is taken by what is given, which all pieces see.
    """

    function: Function
    prefix: str
    names: Sequence[str]

    def take(self, weights: Arrays) -> Arrays:
        return {name: weights[self.prefix + name] for name in self.names}

    def named(self, slopes: Arrays) -> Arrays:
        return {self.prefix + name: slope for name, slope in slopes.items()}


class Chain:
    """Pieces, each with the state that the one before it gives."""

    def __init__(self, pieces: Sequence[Piece]):
        self.pieces = pieces
        functions = {piece.function for piece in pieces}
        self.run = {f: mx.compile(f) for f in functions}
        self.pull = {f: mx.compile(partial(_pulled, f)) for f in functions}

    def __call__(
        self, weights: dict, state: Arrays, given: Arrays
    ) -> tuple[mx.array, dict]:
        """The loss and its gradients by the weights; both trees are alike."""
        flat = dict(tree_flatten(weights))
        states, slopes = [state], {}
        for piece in self.pieces[:-1]:
            run = self.run[piece.function]
            states.append(run(piece.take(flat), states[-1], given))
        slope = {"loss": mx.array(1.0)}
        for piece in reversed(self.pieces):
            pull, state = self.pull[piece.function], states.pop()
            out, by_weights, slope = pull(piece.take(flat), state, given, slope)
            slopes |= piece.named(by_weights)
            if piece is self.pieces[-1]:
                loss = out["loss"]
        return loss, tree_unflatten(list(slopes.items()))


def _pulled(
    function: Function, weights: Arrays, state: Arrays, given: Arrays, slope: Arrays
) -> tuple[Arrays, Arrays, Arrays]:
    """What the function gives, and the gradients by weights and state from those by that."""
    names = [*weights], [*state]
    outputs = [*slope]

    def flat(*values: mx.array) -> list[mx.array]:
        out = function(*split(values), given)
        return [out[name] for name in outputs]

    def split(values: Sequence[mx.array]) -> tuple[Arrays, Arrays]:
        count = len(weights)
        return tuple(map(dict, map(zip, names, (values[:count], values[count:]))))

    given_values = [*weights.values(), *state.values()]
    out, slopes = mx.vjp(flat, given_values, [*slope.values()])
    return dict(zip(outputs, out)), *split(slopes)
