"""Training, tuning and scoring of the attention policies, over clusters at random."""
