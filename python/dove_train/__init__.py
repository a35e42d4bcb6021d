"""Training of dove_ext models: data, closed-form start, losses, and one loop."""
