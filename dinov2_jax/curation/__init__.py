"""Curation: from a pool of pictures to a set to train on (paper section 3 and appendix A)."""
