"""Runs the whole search: python launch/main.py --config configs/streets.py

The same program as `qnas`, from a checkout: `qnas_jax/__main__.py`.
"""

from qnas_jax.__main__ import main

if __name__ == "__main__":
    main()
