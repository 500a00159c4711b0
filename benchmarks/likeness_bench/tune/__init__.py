"""Finding how a repository's steps are best executed: guess from service times, try, compare in alternation, write.

The only part of the harness that knows how repositories are made: it renders their configurations again.
"""
