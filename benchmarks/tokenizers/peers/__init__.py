"""The systems that dove_ext is measured against, written plainly and as their users run them."""
