"""HQNAS: a network and its bitwidths learned together by gradient, with shared weights and bits.

Only the abstract of the paper is public, so the design is this project's.

References:
  Chen et al., 2022, https://arxiv.org/abs/2210.08485.
"""
