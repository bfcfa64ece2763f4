"""Operations with several backends, and kernels the field does not ship."""
