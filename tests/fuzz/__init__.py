"""
fuzz - what strangers write, read by us: any bytes at all, for as long as one likes

targets is the table: what is read, what may be raised, and what must hold of the result. test_fuzz runs each for
a moment in CI, always the same inputs; ``python -m tests.fuzz TARGET`` for as long as asked. What was found once is
kept in corpus/TARGET/ and is tried first.
"""
