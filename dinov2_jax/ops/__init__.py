"""Operations that are written differently for different machines; each gives the same result."""
