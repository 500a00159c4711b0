"""A catalogue drawn by the machine itself, so that the demo needs neither a download nor anybody's licence."""
