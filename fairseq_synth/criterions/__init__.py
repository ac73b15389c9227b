"""Criterions that fairseq lacks. fairseq does not look here: the package imports what is registered."""
