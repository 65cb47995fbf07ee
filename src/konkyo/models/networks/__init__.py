"""Networks and heads of this package: what is trained, and what trained models are made of."""
