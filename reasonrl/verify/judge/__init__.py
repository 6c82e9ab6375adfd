"""Programs that nobody trusts, from the side of whoever asks; `reasonrl judge` (`reasonrl.eval.judge`) is who answers.

types      a job, its limits, the nine verdicts
jobs       jobs from the rows of code tasks, and the program in a model's answer
client     asks a judge, patiently
embedded   starts one for a while
"""
