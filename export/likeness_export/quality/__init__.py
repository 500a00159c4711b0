"""Quality tables: recipes trained with several seeds on real catalogues, measured beside untrained baselines."""
