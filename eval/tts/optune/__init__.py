"""OpTune: a learned editor of weights. `reasonrl optune train` makes one, `reasonrl tts method=optune` uses it."""
