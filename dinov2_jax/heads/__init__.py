"""Everything that is trained or fitted on features or pictures: arrays in, arrays out."""
