"""What holds for all tests."""

from hypothesis import settings

# How long an example takes says how busy the machine is; how long anything may take, the bench measures.
settings.register_profile("fcgimgr", deadline=None)
settings.load_profile("fcgimgr")
