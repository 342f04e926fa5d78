"""From prompts to preferences by files that a person can open: sampled responses, and what judges say of them."""
