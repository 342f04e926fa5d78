"""What is exact where every response can be enumerated: log-probabilities, the optimal policy, the reward-KL frontier."""
