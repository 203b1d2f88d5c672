"""Compiles the programs of prefix trees before they run, on all cores.

XLA compiles a program on one core, and a walk over a tree would wait for one program after
another. JAX keeps what was compiled, so that the walk finds it.
"""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qnas_jax.bwnas.lut import prefix_tree
from qnas_jax.bwnas.lut.prefix_tree import PrefixTree
from qnas_jax.nn import mbconv_float


class Program(NamedTuple):
    """A compiled function and what it is called with: arrays, or their shapes."""

    function: Callable[..., Any]  # jitted, or some of its arguments given
    arguments: tuple[Any, ...]

    def lower(self) -> jax.stages.Lowered:
        """The program as JAX compiles it."""
        if isinstance(self.function, functools.partial):
            function: Any = self.function.func
            return function.lower(*self.function.args, *self.arguments)
        return self.function.lower(*self.arguments)  # type: ignore[attr-defined]

    def key(self) -> Hashable:
        """The same for programs that are compiled once."""
        leaves, structure = jax.tree.flatten(self.arguments[1:])
        shapes = tuple((np.shape(leaf), str(leaf.dtype)) for leaf in leaves)
        function = self.function
        whole = function.func if isinstance(function, functools.partial) else function
        return whole, self.arguments[0], structure, shapes


def of_calibration(
    tree: PrefixTree, x: jax.ShapeDtypeStruct, nodes_per_pass: int
) -> Iterator[Program]:
    """The programs of `prefix_tree.calibrate` on an input of such a shape."""
    passes = prefix_tree.passes_of_calibration(tree)
    xs = _start(passes, x)
    for layer, size in prefix_tree.pass_sizes(tree, nodes_per_pass):
        weights, a_bits = passes.weights[layer][0], tree.a_bits[layer][0]
        xs = _of_nodes(xs, size, x.sharding)
        program = Program(passes.calibrate, (tree.layers[layer], weights, xs, a_bits))
        yield program
        xs, _ = jax.eval_shape(
            functools.partial(passes.calibrate, tree.layers[layer]), weights, xs, a_bits
        )


def of_noise(
    tree: PrefixTree,
    x: jax.ShapeDtypeStruct,
    target: jax.ShapeDtypeStruct,
    nodes_per_pass: int,
) -> Iterator[Program]:
    """The programs of `prefix_tree.noise` on an input and a target of such shapes."""
    passes = prefix_tree.passes_of(tree)
    xs, variance = _start(passes, x), jax.ShapeDtypeStruct(target.shape[-1:], jnp.float32)
    for layer, size in prefix_tree.pass_sizes(tree, nodes_per_pass):
        spec, xs = tree.layers[layer], _of_nodes(xs, size, x.sharding)
        packed = jax.ShapeDtypeStruct((size, mbconv_float.packed_size(spec)), jnp.float32)
        arguments = (spec, passes.weights[layer][0], xs, packed)
        if layer + 1 == len(tree.layers):
            yield Program(passes.nsr, (*arguments, target, variance))
            return
        yield Program(passes.run_layer, arguments)
        xs = jax.eval_shape(functools.partial(passes.run_layer, spec), *arguments[1:])


def compile_all(programs: Iterator[Program], default: Any = None) -> None:
    """Compiles different programs at the same time; equal ones once.

    Args:
      programs: The programs.
      default: The default device where they will be called, if one is set there, as JAX compiles
        again for another one.
    """

    def compile_(program: Program) -> None:
        with jax.default_device(default):
            program.lower().compile()

    begun: dict[Hashable, concurrent.futures.Future[None]] = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for program in programs:  # traces, while others are compiled
                if (key := program.key()) not in begun:
                    begun[key] = pool.submit(compile_, program)
            for done in begun.values():
                done.result()
        except BaseException:  # one failed, or the program is stopped
            pool.shutdown(cancel_futures=True)
            raise


def _start(passes, x):
    range_ = jax.ShapeDtypeStruct((2,), jnp.float32)
    return jax.eval_shape(passes.start, x, jnp.int32(prefix_tree.INPUT_BITS), range_)


def _of_nodes(xs, size, sharding):
    """The outputs of so many nodes, on the device of the input."""

    def of_nodes(leaf):
        return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype, sharding=sharding)

    return jax.tree.map(of_nodes, xs)
