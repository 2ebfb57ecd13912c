"""Figures of fcgimgr, side by side with supervisord and PHP-FPM: `scripts/bench`, or `python -m bench --help`.

Every figure is taken of all managers in the same run, turn by turn, so that what else the machine does hits all of
them; what counts is the ratio, not the milliseconds of one machine. None of this is a test: nothing fails for being
slow. How each is measured stands in its module, the modules are listed in __main__.py.
"""
