"""What may ask for workers: one file a rule, each a pure function from what is seen to a wish. policy.py combines them."""
