"""Process reward models, the paper's line of AdaptiveStep (arXiv 2502.13943): data, training, serving, choosing, decoding."""
