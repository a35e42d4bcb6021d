"""A saved `DoveLlavaForConditionalGeneration` in serving stacks."""
