"""How a network is run, read and differentiated: layers, forwards, and what methods may ask for."""
