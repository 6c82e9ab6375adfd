"""Test time: what a model reaches on a question when it may try several times (`reasonrl tts`).

    base      what a method asks for and leaves behind        methods/   one file a method
    schedule  all live questions in lock step                 backends/  what samples, and learns, for them
    feedback  turns that answer an attempt                    hard       the questions whose greedy answer fails
    run       the main path, read first

After Li, Lyu and Wang, Learning to Reason from Feedback at Test-Time, arXiv 2502.15771.
"""
