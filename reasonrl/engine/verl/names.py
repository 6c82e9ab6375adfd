"""Names shared by the processes of a run. Imports nothing: `plugin.py` must not be loaded before the platform is chosen."""

ROLLOUT_NAME = "reasonrl_cpu"  # the transformers rollout; `rollout.name` in verl's configuration
TRAINER_NAME = "reasonrl"  # `trainer.v1.trainer_mode`
THREADS = "REASONRL_THREADS"  # environment: torch threads of the training process and of the rollout, on the CPU
FATAL = "fatal"  # in the tag of a problem that failed: the run cannot go on
