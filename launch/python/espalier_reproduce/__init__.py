"""The comparisons of both papers in small, on a trained model: launch/reproduce.sh."""
