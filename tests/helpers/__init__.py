"""What tests share: comparisons, and what stands in for a GPU."""
