"""What keeps going while a store is away, and heals what it lost."""
