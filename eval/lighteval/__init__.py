"""`reasonrl eval lighteval`: the same model through lighteval's own tasks, its accuracy beside ours.

Two programs that ask in other words and read answers by other rules agree where a model states its answers plainly. Where they
do not, prompts or rules are why, and the notes say what differs.

Written for lighteval 0.13 after its source, and used through its command line: it cannot share our environment, because it pins
latex2sympy2_extended 1.0.6, which Math-Verify does not work with, and vllm below 0.10.2.
    what it does                                              what is done about it
    keeps answers beside the model if its path is absolute    it gets a folder of links, by a relative name
    transformers: generation_config.json, not temperature,    those links have a generation_config.json of their own,
    says whether to sample, and its penalties count           without penalties
    cuts prompts where prompt and max_new_tokens do not fit   max_new_tokens is lowered to what the context leaves
    vLLM: takes another of its limits for the context         the context is given
"""
