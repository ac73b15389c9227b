"""A step of a search by fewer operations. The reference is fairseq's general way; ``decoder.short_steps = False`` takes
it everywhere."""
