"""Runs a benchmark: python launch/bench/main.py --help"""

from qnas_jax.run import cli, platform

if __name__ == "__main__":
    cli.guarded(platform.prepared("subjects").main)
