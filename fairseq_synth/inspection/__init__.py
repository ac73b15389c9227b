"""Looking at models and runs: what the ``fairseq-synth`` commands doctor, inspect, plot and results read and draw.

Legend: T target/query length, S source/key length, H heads, D head dim, K scorers of a mixture, N maximum length.
"""
