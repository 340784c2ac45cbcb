"""Test accuracies that papers print, beside which the studies show their own.

All are of 200 epochs of all images. A name says where a number is from; why ours differ is told in
docs/reproduction/published-tables.md.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A table that a paper prints, in %; by setting and method as in `figure3_benchmark`."""

    source: str
    methods: tuple[str, ...]
    values: dict[str, tuple[float, ...]]  # of the methods, by setting


JOCOR = Published(  # means of the last ten epochs
    "JoCoR's paper (CVPR 2020)", ("standard", "coteaching", "coteaching+", "jocor"),
    {"symmetric 20 %": (79.56, 95.10, 97.81, 98.06),
     "symmetric 50 %": (52.66, 89.82, 95.80, 96.64),
     "symmetric 80 %": (23.43, 79.73, 58.92, 84.89),
     "asymmetric 40 %": (79.00, 90.28, 93.28, 95.24)},
)  # fmt: skip
BARE = Published(
    "BARE's paper (WACV 2023), another rate and other pixels",
    ("standard", "coteaching", "coteaching+", "reweight", "bare"),
    {"symmetric 50 %": (74.30, 90.80, 93.17, 90.39, 94.38)},
)
COTEACHING = Published(  # means of the last ten epochs; for MentorNet and pair noise
    "Co-teaching's paper (NeurIPS 2018), CNN of 9 layers",
    ("standard", "decoupling", "f-correction", "mentornet", "coteaching"),
    {"symmetric 20 %": (94.05, 95.70, 98.80, 96.70, 97.25),
     "symmetric 50 %": (66.05, 81.15, 79.61, 90.05, 91.32),
     "pair 45 %": (56.52, 58.03, 0.24, 80.88, 87.63)},
)  # fmt: skip
S2E_ISSUE = Published(
    "a user of the authors' program (its issue 3)", ("s2e-paper",), {"symmetric 50 %": (50.82,)}
)
TABLES = {"mnist": (JOCOR, BARE, COTEACHING), "cifar10": (S2E_ISSUE,)}  # by data set
