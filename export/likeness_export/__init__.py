"""Train, evaluate, export and serve multimodal product similarity. Heavy: everything that needs torch lives here."""
