"""Promise two, by program: what an operator does to a pool loses no request, and none is carried out twice.

programs.py says which programs people run and how, posts.py asks them, trial.py reloads, restarts and scales meanwhile.
`scripts/promises` is the long form, test_programs.py a short one.
"""
