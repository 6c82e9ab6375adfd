"""`reasonrl judge`: runs programs nobody trusts and says whether they pass their tests.

types      a job, its limits, the nine verdicts
inside     what runs in the sandbox: a driver for the tests, and the candidate behind a pipe
sandbox    one job in one bubblewrap sandbox, watched from outside
seccomp    the system calls that nobody needs to sort a list
canaries   what must fail in the sandbox, tried before anything is served
service    HTTP around it: queue, cache, drain
client     asks a service, patiently; embedded: starts one for a while
"""
