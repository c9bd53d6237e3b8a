"""The domain of leaderboards: definitions, windows, submissions and rankings."""
