"""Whether a plugin helps in an experiment: the parts of ``compare``.

A plan names a config, arms and seeds. The runs are trained, paired by seed,
and reported with intervals and costs.
"""
