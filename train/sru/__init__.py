"""Simple Recurrent Units (Lei and Zhang, arXiv 1709.02755 in its form of September 2017), as the paper uses them."""

from train.sru.module import SRU

__all__ = ["SRU"]
