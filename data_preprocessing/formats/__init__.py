"""One file per format: voxels as stored, and where they lie; `volume_io` chooses among them."""
