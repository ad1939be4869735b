"""Measures what merging did to the features: CKA of base, fine-tune and merge on a probe, layer by layer.

Needs torch, and the extra `cka`: nothing in here is imported by a merge that does not ask for it.
"""
