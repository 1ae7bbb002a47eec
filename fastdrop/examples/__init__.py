"""Networks in plain NumPy, trained with fastdrop."""
