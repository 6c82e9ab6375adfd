"""`reasonrl judge`: runs programs nobody trusts and says whether they pass their tests.

inside     what runs in the sandbox: a driver for the tests, and the candidate behind a pipe
sandbox    one job in one bubblewrap sandbox, watched from outside
seccomp    the system calls that nobody needs to sort a list
canaries   what must fail in the sandbox, tried before anything is served
desk       the queue, the cache and the cores
service    HTTP around it
serve      the command

Jobs, verdicts and the client are `reasonrl.verify.judge`.
"""
