"""The data plane: a request comes in, a decision is carried out, an answer goes back."""
