"""Products and what is known about them: catalogues, labelled pairs, logs of shoppers."""
