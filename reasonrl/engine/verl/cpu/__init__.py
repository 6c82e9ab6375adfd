"""verl on a CPU: a platform, the FSDP engine registered for it, and a transformers rollout replica."""
