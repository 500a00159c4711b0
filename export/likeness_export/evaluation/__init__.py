"""How well a run finds what is alike, in figures and in pictures."""
