"""What keeps the service going while a store is away, and makes the two equal again."""
