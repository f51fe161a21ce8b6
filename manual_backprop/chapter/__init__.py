"""The systems of the chapter, a file a system: pure functions of numbers, which the scripts of the same name show.

`run.py` is what those scripts share, `pictures.py` what they draw; the rest is the mathematics.
"""
