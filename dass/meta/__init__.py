"""Meta-learning: how the predictor learns to adapt to an unseen teacher from that teacher alone (DaSS, section 4)."""
