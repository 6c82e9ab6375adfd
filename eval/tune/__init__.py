"""Supervised tuning on gold solutions, the baselines that test-time training is compared with (`reasonrl tune`).

    command   the main path, read first      targets   what is learned, as tokens
    kinds     which weights are trained      trainer   the steps, and what a checkpoint holds
    publish   a folder that loads as a model

After Li, Lyu and Wang, arXiv 2502.15771.
"""
